"""The flow-matching loss, one number per sample so that it can be read by noise level."""

from __future__ import annotations

from torch import Tensor


def velocity_loss(predicted: Tensor, velocity: Tensor) -> Tensor:
    """Mean squared error of each sample: (B, ...), (B, ...) -> (B,) in float32 or wider.

    No weight by noise level: E[|predicted - (noise - latents)|^2] (Lipman et al. 2023), the time
    sampler decides where the effort goes.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != velocity.shape:
        raise ValueError(
            f"the predicted velocity has shape {tuple(predicted.shape)} and its target "
            f"{tuple(velocity.shape)}; they must be equal, check the network's output channels"
        )
    if predicted.element_size() < 4:
        predicted = predicted.float()
    return (predicted - velocity.to(predicted.dtype)).square().flatten(1).mean(dim=1)
