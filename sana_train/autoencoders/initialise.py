"""How random convolutions of an autoencoder start."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def variance_preserving_(conv: nn.Conv3d, block: int = 1) -> None:
    """Kernels of unit gain and no bias; each ``block`` consecutive outputs start with one kernel.

    The default start of a third of the variance per layer fades a clip's content over a dozen linear
    layers, and independent kernels within a shuffled block scatter it (Aitken et al. 2017, arXiv
    1707.02937): a decoder that starts so first learns to ignore its latents, for thousands of steps.
    """
    fan_in = conv.weight[0].numel()
    first = conv.weight[::block]
    # In the usual layout: with channels last the same seed would give other numbers.
    kernels = torch.empty(first.shape, dtype=first.dtype, device=first.device).normal_(std=fan_in**-0.5)
    conv.weight.copy_(kernels.repeat_interleave(block, dim=0))
    if conv.bias is not None:
        conv.bias.zero_()
