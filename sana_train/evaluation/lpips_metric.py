"""Learned perceptual distance of clips (LPIPS with AlexNet, Zhang et al. 2018), an optional extra.

The package comes with ``pip install -e '.[metrics]'`` and brings its own calibration; the ImageNet weights
of its backbone are read from torch's hub cache. Nothing is downloaded here: a number in a record must not
depend on whether a machine happened to be online.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor

from sana_train.utils.torchvision_shim import ensure_torchvision

BACKBONE_FILE = "alexnet-owt-7be5be79.pth"  # torchvision's AlexNet_Weights.IMAGENET1K_V1


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("lpips", "torchvision"))


def backbone_path() -> Path:
    """Where torch's hub keeps the backbone's weights; ``TORCH_HOME`` moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE_FILE


def is_ready() -> bool:
    """Whether published numbers can be made: package installed, backbone in the cache."""
    return is_installed() and backbone_path().is_file()


class PerceptualDistance:
    """LPIPS per frame, averaged over a clip; 0 = equal.

    Args:
        pretrained: False leaves the backbone random, which ranks large against small changes only and
            compares with no published number.
        device: where frames are compared.

    Raises:
        ImportError: the extra is not installed.
        ValueError: ``pretrained``, but the backbone's weights are not in the cache.
    """

    def __init__(self, pretrained: bool, device: torch.device | str) -> None:
        if not is_installed():
            raise ImportError("LPIPS needs lpips and torchvision: pip install -e '.[metrics]'")
        if pretrained and not backbone_path().is_file():
            raise ValueError(
                f"LPIPS needs AlexNet's ImageNet weights at {backbone_path()}; fetch them once with "
                "torchvision.models.alexnet(weights='IMAGENET1K_V1'), or copy the file from another machine"
            )
        ensure_torchvision()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips names weights as old torchvisions did
            lpips = importlib.import_module("lpips")
            network = lpips.LPIPS(net="alex", pnet_rand=not pretrained, verbose=False)
        self.network = network.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def __call__(self, video: Tensor, reference: Tensor) -> Tensor:
        """Clips (B, 3, F, H, W) in [-1, 1], twice -> (B,)."""
        pairs = zip(video.float(), reference.float(), strict=True)  # a clip at a time bounds memory
        return torch.stack([self.network(a.transpose(0, 1), b.transpose(0, 1)).mean() for a, b in pairs])
