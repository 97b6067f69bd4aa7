"""Features of every frame in cells of 4 px that know their surroundings in space and time.

Legend: B clips, F frames, C channels, H = W side of a feature map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

STRIDE_PX = 4


class ReaderBackbone(nn.Module):
    """Frames (B*F, 3, H, W) -> near and wide features (B*F, width, H / 4, W / 4).

    The near ones see some 20 px; the wide ones come back from cells of 16 px, where frames are mixed.

    Args:
        width: channels of cells of 4 px; those of 8 and 16 px have 2 and 3 times as many.
        num_blocks: residual blocks at 8 px and at 16 px each.
        num_frames: of a clip.
    """

    def __init__(self, width: int, num_blocks: int, num_frames: int) -> None:
        super().__init__()
        mid, deep = 2 * width, 3 * width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            _Block(width),
        )
        self.to_mid = _down(width, mid)
        self.mid = nn.Sequential(*(_Block(mid) for _ in range(num_blocks)))
        self.to_deep = _down(mid, deep)
        self.deep = nn.Sequential(*(_TimeBlock(deep, num_frames) for _ in range(num_blocks)))
        self.deep_to_mid = nn.Conv2d(deep, mid, 1)
        self.mid_to_fine = nn.Conv2d(mid, width, 1)
        self.merge_mid, self.merge_fine = _Block(mid), _Block(width)
        self.norm_near, self.norm_wide = _ChannelNorm(width), _ChannelNorm(width)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(frames.contiguous(memory_format=torch.channels_last))
        mid = self.mid(self.to_mid(fine))
        deep = self.deep(self.to_deep(mid))
        mid = self.merge_mid(mid + _double(self.deep_to_mid(deep)))
        wide = self.merge_fine(fine + _double(self.mid_to_fine(mid)))
        return self.norm_near(fine), self.norm_wide(wide)


class _ChannelNorm(nn.LayerNorm):
    """Normalises the channels of each cell, in the input's own precision under autocast, too."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.permute(0, 2, 3, 1)
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """A 3x3 convolution around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _ChannelNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.conv(self.norm(x)))


class _TimeBlock(nn.Module):
    """Looks around in a frame, at the frames beside it, and at the whole clip."""

    def __init__(self, channels: int, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.space = _Block(channels)
        self.norm = _ChannelNorm(channels)
        self.time = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.clip = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.space(x)
        hidden = rearrange(self.norm(x), "(b f) c h w -> b c f (h w)", f=self.num_frames)
        whole = self.clip(hidden.mean(dim=(2, 3)))[..., None, None]
        hidden = F.silu(self.time(hidden) + whole)
        return x + rearrange(hidden, "b c f (h w) -> (b f) c h w", h=x.shape[-2])


def _down(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(_ChannelNorm(before), nn.Conv2d(before, after, 3, stride=2, padding=1))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
