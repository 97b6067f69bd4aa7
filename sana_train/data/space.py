"""What a latent space is, as JSON: enough to train in it without the autoencoder."""

from __future__ import annotations

from typing import Any

import torch

from sana_train.protocols import Autoencoder


def describe_space(autoencoder: Autoencoder, device: torch.device) -> dict[str, Any]:
    """JSON values; latents of a DiT are (raw - mean) / std.

    ``autoencoder`` is the dotted name of its class; of one that stands in for another, the other's.
    """
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    latents = ends.view(2, 1, 1, 1, 1).expand(2, autoencoder.spec.channels, 1, 1, 1)
    mean, upper = autoencoder.denormalise(latents).flatten(1)  # what a DiT's 0 and 1 are before scaling
    return {
        "autoencoder": class_name(autoencoder),
        "fingerprint": autoencoder.fingerprint(),
        "latent_spec": autoencoder.spec.to_dict(),
        "mean": mean.tolist(),
        "std": (upper - mean).tolist(),
    }


def class_name(autoencoder: Autoencoder) -> str:
    """Dotted name of the class whose latents these are."""
    own = f"{type(autoencoder).__module__}.{type(autoencoder).__qualname__}"
    return getattr(autoencoder, "stands_for", None) or own
