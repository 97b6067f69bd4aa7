"""Clips at another height and width; both stages, their training and their judges read the same pixels."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


def resized(video: Tensor, height_px: int, width_px: int) -> Tensor:
    """(B, 3, F, H, W) in [-1, 1] at another height and width, bicubic with anti-aliasing, frame by frame."""
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    changed = F.interpolate(frames, (height_px, width_px), mode="bicubic", antialias=True).clamp(-1, 1)
    return rearrange(changed, "(b f) c h w -> b c f h w", b=len(video))
