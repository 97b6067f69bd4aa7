"""RMS norm with a float32 interior, and adaptive modulation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps) over the last axis, in float32, returned in x's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm (eps 1e-6, no affine), times 1 + scale, plus shift.

    ``x`` is (B, N, D); ``shift`` and ``scale`` are (B, T, 1, D) with T frames or T = 1 for the clip.
    """
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6).unflatten(1, (shift.shape[1], -1))  # (B, T, N / T, D)
    return torch.addcmul(shift, x, 1 + scale).flatten(1, 2)


def gated_residual(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + gate * update with x, update (B, N, D) and gate (B, T, 1, D)."""
    frames = (gate.shape[1], -1)
    return torch.addcmul(x.unflatten(1, frames), gate, update.unflatten(1, frames)).flatten(1, 2)
