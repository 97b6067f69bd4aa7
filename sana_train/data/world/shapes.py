"""Signed distances of the shapes, in units of the radius: negative inside, y down.

Inside and near the edge they are exact or close to it; that is where anti-aliasing and outline look.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.95


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.82


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    inradius = 0.6
    y = y - 0.2  # centres the bounding box
    return torch.maximum(y - inradius, (0.75**0.5) * x.abs() - 0.5 * y - inradius)


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() + y.abs() - 1.1) * (0.5**0.5)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points: fold the plane into half a point, then one straight edge."""
    outer, inner, half = 1.12, 0.52, math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + half, 2 * half) - half
    rho = torch.hypot(x, y)
    px, py = rho * torch.cos(angle), (rho * torch.sin(angle)).abs()
    ex, ey = inner * math.cos(half) - outer, inner * math.sin(half)
    return ((px - outer) * ey - py * ex) / math.hypot(ex, ey)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.maximum(x, y) - 0.98, torch.minimum(x, y) - 0.36)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.69).abs() - 0.3


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner with a half disc on each upper side."""
    half = 0.82
    x, y = x.abs(), y - 0.1
    square = (x + y.abs() - half) * (0.5**0.5)
    disc = torch.hypot(x - half / 2, y + half / 2) - half * (0.5**0.5)
    return torch.minimum(square, disc)


# in the order of scene.SHAPES
DISTANCES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _circle, _square, _triangle, _diamond, _star, _cross, _ring, _heart,
)  # fmt: skip
