"""Colours, object textures and backdrops.

A texture is a scalar field in [0, 1] between two tones of the object's colour; its mean is 0.5.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from sana_train.data.world.scene import TEXTURES, WORLD_PX
from sana_train.utils.rng import SampleRng

# sRGB, in the order of scene.COLOURS; pairwise far apart in Lab, also between their darker tones
COLOUR_RGB = (
    (222, 38, 44), (250, 134, 16), (252, 220, 40), (52, 160, 64),
    (36, 204, 214), (32, 92, 222), (154, 52, 178), (250, 136, 196),
)  # fmt: skip
# two tones each, of low saturation and light enough for every object to stand out
PALETTE_RGB = (
    ((226, 230, 236), (176, 184, 196)),
    ((234, 228, 216), (190, 180, 164)),
    ((222, 232, 222), (170, 184, 172)),
    ((230, 224, 232), (180, 172, 188)),
    ((216, 216, 216), (164, 164, 166)),
    ((224, 232, 234), (166, 182, 188)),
)
_WAVES = 8
_MAX_LOOKS = 16


def textures(kind: int, dx: Tensor, dy: Tensor, radius: Tensor, period: Tensor, variant: Tensor) -> Tensor:
    """Field of texture class ``kind`` at offsets from the object's centre in world px.

    ``dx``, ``dy``: (n, F, h, w); ``radius``: (n, F, 1, 1); ``period``, ``variant``: (n, 1, 1, 1).
    """
    name = TEXTURES[kind]
    turn = 2 * math.pi / period
    if name == "stripes":
        slope = torch.where(variant % 2 == 0, 1.0, -1.0)
        return _soft(1.7 * torch.sin(turn * (dx + slope * dy) * (0.5**0.5)))
    if name == "checks":
        return _soft(2.4 * torch.sin(turn * dx) * torch.sin(turn * dy))
    if name == "noise":
        return _noise(dx, dy, period, variant)
    if name == "gradient":
        return (0.5 - 0.5 * dy / radius).clamp(0.0, 1.0)
    return torch.full_like(dx, 0.5)


def _soft(wave: Tensor) -> Tensor:
    return 0.5 + 0.5 * wave.clamp(-1.0, 1.0)


@lru_cache(maxsize=1)
def _wave_table() -> Tensor:
    """(looks, waves, 3): wave vector in units of the texture's frequency, and phase."""
    rng = SampleRng(0, torch.arange(_MAX_LOOKS))
    u = rng.uniform("noise_texture", (_WAVES, 3))
    direction = (torch.arange(_WAVES) + u[..., 0]) * (math.pi / _WAVES)  # all round
    relative = 0.88 + 0.24 * u[..., 1]
    return torch.stack(
        [relative * direction.cos(), relative * direction.sin(), 2 * math.pi * u[..., 2]], dim=-1
    )


def _noise(dx: Tensor, dy: Tensor, period: Tensor, variant: Tensor) -> Tensor:
    """Band-limited noise: plane waves of nearly one wavelength in all directions."""
    table = _wave_table().to(dx.device)[variant.flatten()]  # (n, waves, 3)
    total = torch.zeros_like(dx)
    for wave in range(_WAVES):
        kx, ky, phase = (value[:, None, None, None] for value in table[:, wave].unbind(-1))
        total = total + torch.sin((2 * math.pi / period) * (kx * dx + ky * dy) + phase)
    return _soft(total * (1.1 / _WAVES**0.5))


def backdrop_mix(
    kind: int, x: Tensor, y: Tensor, angle: Tensor, offset_x: Tensor, offset_y: Tensor
) -> Tensor:
    """How far backdrop class ``kind`` is from its first tone to its second: (n, F, H, W) in [0, 1].

    ``x`` (n, F, 1, W) and ``y`` (n, F, H, 1) in world px, the others (n, 1, 1, 1).
    """
    shape = torch.broadcast_shapes(x.shape, y.shape)
    if kind == 1:  # fading
        along = (x - WORLD_PX / 2) * angle.cos() + (y - WORLD_PX / 2) * angle.sin()
        return (0.5 + along / (1.2 * WORLD_PX)).clamp(0.0, 1.0)
    if kind == 2:  # tiled
        wave_x = torch.sin((x / 40 + offset_x) * 2 * math.pi)
        wave_y = torch.sin((y / 40 + offset_y) * 2 * math.pi)
        return 0.5 + 0.5 * (wave_x * wave_y * 8).clamp(-1.0, 1.0)
    if kind == 3:  # horizon: sky over rolling ground
        ground = 62 + 24 * offset_y + 4 * torch.sin((x / 64 + offset_x) * 2 * math.pi)
        sky = 0.35 * (1 - y / WORLD_PX)
        below = (y - ground + 0.5).clamp(0.0, 1.0)
        return sky + below * (1 - sky)
    if kind == 4:  # spotlit
        dx = x - WORLD_PX * (0.35 + 0.3 * offset_x)
        dy = y - WORLD_PX * (0.35 + 0.3 * offset_y)
        return ((torch.hypot(dx, dy) - 18) / 50).clamp(0.0, 1.0)
    return torch.full(shape, 0.25, device=x.device)
