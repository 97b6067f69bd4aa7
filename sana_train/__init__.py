"""Move a video diffusion transformer from one latent space into another, and measure how far it got."""

import importlib.util as _util

__version__ = "0.1.0"

# Only where torchvision is installed, so that a plain import stays cheap (see the shim's docstring).
if _util.find_spec("torchvision") is not None:
    from sana_train.utils.torchvision_shim import ensure_torchvision as _ensure_torchvision

    _ensure_torchvision()
