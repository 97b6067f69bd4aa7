"""The gated feed-forward with a spatial and a temporal convolution (Mix-FFN).

Legend: B batch, T/H/W token grid, N = T*H*W tokens, D width, M hidden width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class MixFFN(nn.Module):
    """Expand, SiLU, depthwise 3x3 within a frame, SiLU gate, project, then u + temporal(u).

    The temporal convolution has 3 taps and mixes all channels. It is a linear layer over the
    neighbours [u_(t-1), u_t, u_(t+1)] side by side, so it is one matrix product.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * hidden)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.project = nn.Linear(hidden, width, bias=False)
        self.temporal = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        frames, height, width = grid
        x = F.silu(self.expand(x))  # (B, N, 2M)
        # A view: the tokens already lie in channels-last order.
        x = rearrange(x, "b (t h w) m -> (b t) m h w", t=frames, h=height, w=width)
        x = rearrange(self.depthwise(x), "(b t) m h w -> b t (h w) m", t=frames)
        value, gate = x.chunk(2, dim=-1)
        x = self.project(value * F.silu(gate))  # (B, T, HW, D)
        padded = F.pad(x, (0, 0, 0, 0, 1, 1))
        neighbours = torch.cat([padded[:, :-2], x, padded[:, 2:]], dim=-1)  # (B, T, HW, 3D)
        return (x + self.temporal(neighbours)).flatten(1, 2)
