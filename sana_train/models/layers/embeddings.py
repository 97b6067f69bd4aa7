"""Latent patches, noise time and captions to width D.

Legend: B batch, C latent channels, T frames, N tokens, S caption tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product over flattened patches.

    The weight keeps its five axes, so that two patch sizes with equally many inputs (16 channels of
    1x2x2 and 64 channels of 1x1x1) are never taken for each other when weights are loaded.
    """

    def __init__(self, channels: int, patch_size: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, *patch_size))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, N, D)."""
        frames, height, width = self.weight.shape[2:]
        patches = rearrange(
            latents, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=frames, q=height, r=width
        )
        return F.linear(patches, self.weight.flatten(1), self.bias)


class TimeEmbed(nn.Module):
    """Sinusoids [cos | sin] of the timestep in 0..1000, then a two-layer SiLU MLP."""

    num_features = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(self.num_features, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, timestep: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        half = self.num_features // 2
        exponent = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
        angle = timestep.float()[..., None] * torch.exp(-math.log(10000.0) * exponent)
        features = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(features)))


class CaptionEmbed(nn.Module):
    """Two-layer MLP with tanh GELU."""

    def __init__(self, caption_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(caption_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, context: Tensor) -> Tensor:
        """(B, S, caption_dim) -> (B, S, D)."""
        return self.fc2(F.gelu(self.fc1(context), approximate="tanh"))
