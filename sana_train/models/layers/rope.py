"""Rotary position embedding over (t, h, w) with real-valued positions.

Legend: B batch, N tokens, A attention heads, E head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10000.0


class Rotation(NamedTuple):
    """Cosines and sines of shape (N, 1, E / 2), one angle for each pair of channels (2i, 2i + 1)."""

    cos: Tensor
    sin: Tensor


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that carry t, h and w; h and w get a third each, rounded down to even."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def grid_positions(grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """(3, N) float64 integer positions of a T x H x W token grid, w fastest."""
    axes = [torch.arange(size, device=device, dtype=torch.float64) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


def rotation(positions: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
    """Angles ``position * THETA ** (-2j / dim)`` per axis; float64 inside, returned in ``dtype``.

    Nothing is cached or held in a buffer: a table made inside the graph is safe under CUDA graphs,
    and casting the module to bfloat16 cannot touch it.
    """
    angles = []
    for axis, dim in zip(positions.double(), axis_dims(head_dim), strict=True):
        exponent = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float64) / dim
        angles.append(axis[:, None] * THETA**-exponent)
    angle = torch.cat(angles, dim=-1)[:, None]  # (N, 1, E / 2)
    return Rotation(angle.cos().to(dtype), angle.sin().to(dtype))


def rotate(x: Tensor, rope: Rotation) -> Tensor:
    """Turn each channel pair of (B, N, A, E) by its angle, in the dtype of ``rope``."""
    even, odd = x.to(rope.cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = (even * rope.cos - odd * rope.sin, even * rope.sin + odd * rope.cos)
    return torch.stack(turned, dim=-1).flatten(-2)
