"""From masks of the shapes to where they are when, and what follows from that without learning.

Legend: B clips, F frames, S shapes, N cells of a frame, G = cells along a side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_COUNT = 3
_SEEN_CELLS = 4.0  # of a shape in a frame, for it to count as half seen
_PRESENT_CELLS = 5.0  # of a shape in a frame, on average, for it to count as half present
_RELATION_PER_CELL = 2.0  # logit of a relation per cell between the two centres


def tracks(masks: Tensor) -> Tensor:
    """(B, F, S, N) masks in [0, 1] -> (B, S, F, 4): centre x and y, log size, how far it is seen.

    Centres lie in [-1, 1]; where a shape is not seen, it is taken to be where it is on average.
    """
    side = round(masks.shape[-1] ** 0.5)
    place = (torch.arange(side, device=masks.device, dtype=masks.dtype) + 0.5) * (2 / side) - 1
    x, y = place.repeat(side), place.repeat_interleave(side)
    moments = masks @ torch.stack([torch.ones_like(x), x, y], dim=-1)  # (B, F, S, 3)
    area, total = moments[..., :1], moments[..., 1:]
    mean = total.sum(dim=1, keepdim=True) / (area.sum(dim=1, keepdim=True) + 1e-3)
    centre = (total + 0.1 * mean) / (area + 0.1)
    size = torch.log1p(area)
    return torch.cat([centre, size, area / (area + _SEEN_CELLS)], dim=-1).transpose(1, 2)


def presence_logit(tracked: Tensor) -> Tensor:
    """(B, S) from tracks: how much of a shape there is to see."""
    area = tracked[..., 2].expm1().mean(dim=-1)
    return 2 * ((area + 0.1).log() - math.log(_PRESENT_CELLS))


def count_log_p(presence: Tensor) -> Tensor:
    """(B, S) probabilities of presence -> (B, 3) log-probability of 1, 2, 3 shapes.

    What falls on other numbers says nothing and is divided evenly.
    """
    zeros = torch.zeros_like(presence[:, :1])
    number = torch.cat([zeros + 1, *[zeros] * (MAX_COUNT + 1)], dim=1)  # (B, 0 .. 3 and more)
    for p in presence.split(1, dim=1):
        more = torch.cat([zeros, number[:, :-2], number[:, -2:].sum(dim=1, keepdim=True)], dim=1)
        number = torch.lerp(number, more, p)
    possible = number[:, 1 : MAX_COUNT + 1]
    spare = 1 - possible.sum(dim=1, keepdim=True)
    return (possible + spare.clamp_min(0) / MAX_COUNT).clamp_min(1e-6).log()


def relation_logits(tracked: Tensor, present: Tensor, grid: int) -> Tensor:
    """(B, 4): where the first present shape is, seen from the second, in the first frame; 0 if alone.

    ``present`` is (B, S) bool.
    """
    order = present.cumsum(dim=1) * present
    first, second = ((order == rank)[..., None] * tracked[:, :, 0, :2] for rank in (1, 2))
    dx, dy = (first - second).sum(dim=1).mul(grid / 2 * _RELATION_PER_CELL).unbind(-1)
    logits = torch.stack([-dx, dx, -dy, dy], dim=-1)  # left, right, above, below; y points down
    return torch.where((order == 2).any(dim=1)[:, None], logits, 0.0)
