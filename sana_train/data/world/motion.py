"""Where objects are at a time: closed forms, so any frame is drawn alone and a lag is a shift of time."""

from __future__ import annotations

import torch
from torch import Tensor

from sana_train.data.world.scene import LAST_FRAME, MID_FRAME, PATH, WORLD_PX


def positions(path: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Centres in world px of paths (..., P) at frame times (T,): x and y of shape (..., T)."""
    column = {name: path[..., i, None] for i, name in enumerate(PATH)}
    own = t - column["lag"]  # (..., T)
    angle = column["phase"] + column["omega"] * own
    x = column["cx"] + column["vx"] * (own - MID_FRAME) + column["orbit"] * torch.cos(angle)
    y = column["cy"] + column["vy"] * (own - MID_FRAME) + column["orbit"] * torch.sin(angle)
    # elastic side walls: a triangle wave between wall and WORLD_PX - wall
    wall = column["wall"]
    span = (WORLD_PX - 2 * wall).clamp_min(1.0)
    folded = wall + (torch.remainder(x - wall - span, 2 * span) - span).abs()
    x = torch.where(wall > 0, folded, x)
    # elastic floor under gravity: equal parabolas between hits
    s = torch.remainder((own - column["hit"]) / column["period"], 1.0)
    return x, y - 4 * column["height"] * s * (1 - s)


def radii(path: Tensor, t: Tensor) -> Tensor:
    """Radii in world px of paths (..., P) at frame times (T,): (..., T), linear over the clip."""
    start, end = path[..., PATH.index("radius0"), None], path[..., PATH.index("radius1"), None]
    return start + (end - start) * (t / LAST_FRAME)
