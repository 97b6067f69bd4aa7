"""Where the objects of a scene go: their paths, chosen so that a viewer can tell what happens.

Legend: B scenes, O object slots, K places tried, T times looked at, P columns of a path.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sana_train.data.world.motion import positions, radii
from sana_train.data.world.scene import MOTIONS, NUM_SLOTS, PATH, WORLD_PX, WorldSpec
from sana_train.data.world.streams import Stream

_FOLLOW_RADIUS_PX = 19.0  # two in a row must fit the frame
_FLOOR_PX = 122.0
_TRIES = 12  # new places tried for an object in one round


def lay_out(spec: WorldSpec, rng: Stream, classes: dict[str, Tensor]) -> Tensor:
    """(B, O, P) paths: a random layout, moved object by object until no fault is left to see."""
    fixed = _fixed_motion(spec, rng, classes)
    exists = classes["shape"] >= 0
    u = rng("layout", NUM_SLOTS, 4)  # (B, O, 4)
    fault = _layout_fault(_place(fixed, u[:, None], classes), exists[:, None])[:, 0]
    for attempt in range(spec.layout_rounds):
        rows = (fault > 0).nonzero().flatten()
        if not len(rows):
            break
        slot = attempt % exists[rows].sum(dim=1)
        here = torch.arange(len(rows))
        tried = u[rows][:, None].repeat(1, _TRIES, 1, 1)  # (n, K, O, 4)
        tried[here, :, slot] = rng.rows(rows)(f"layout{attempt}", _TRIES, 4)
        some_fixed, some_classes = ({k: v[rows] for k, v in part.items()} for part in (fixed, classes))
        faults = _layout_fault(_place(some_fixed, tried, some_classes), exists[rows][:, None])
        least, best = faults.min(dim=1)
        better = least < fault[rows]
        u[rows[better]] = tried[here, best][better]
        fault[rows[better]] = least[better]
    return _place(fixed, u[:, None], classes)[:, 0].contiguous()


def _fixed_motion(spec: WorldSpec, rng: Stream, classes: dict[str, Tensor]) -> dict[str, Tensor]:
    """(B, O) path parameters that do not depend on the layout."""
    motion, leader = classes["motion"], classes["leader"]
    count = (classes["shape"] >= 0).sum(dim=1, keepdim=True)
    u = rng("kinematics", 5, NUM_SLOTS).unbind(1)
    is_ = {name: motion == i for i, name in enumerate(MOTIONS)}
    leads = torch.zeros_like(motion, dtype=torch.bool)
    for slot in range(NUM_SLOTS):
        leads |= leader[:, slot, None] == torch.arange(NUM_SLOTS)
    paired = leads | is_["follow"]
    largest = spec.radius_max_px - 2.5 * (count - 1)
    radius = spec.radius_min_px + u[0] * (largest - spec.radius_min_px)
    radius = torch.where(paired, radius.clamp_max(_FOLLOW_RADIUS_PX), radius)
    speed = spec.speed_min_px + u[1] * (spec.speed_max_px - spec.speed_min_px)
    speed = torch.where(leads, 2.8 + 0.4 * u[1], speed)
    sign_x = is_["drift_right"].float() - is_["drift_left"].float()
    sign_y = is_["drift_down"].float() - is_["drift_up"].float()
    side = torch.where(u[2] < 0.5, -1.0, 1.0)
    orbit = torch.where(leads, 23.0 + 2.0 * u[1], 15.0 + 5.0 * u[1])
    grown = 1.12 * radius
    small = 0.55 * radius
    return {
        "vx": sign_x * speed + is_["bounce"] * side * (0.8 + 1.2 * u[3]),
        "vy": sign_y * speed,
        "orbit": is_["orbit"] * orbit,
        "omega": is_["orbit"] * side * (2 * math.pi / (15.0 + 3.0 * u[3])),
        "height": is_["bounce"] * (34.0 + 12.0 * u[1]),
        "period": 10.0 + 2.0 * u[4],
        "radius0": torch.where(is_["grow"], small, torch.where(is_["shrink"], grown, radius)),
        "radius1": torch.where(is_["shrink"], small, torch.where(is_["grow"], grown, radius)),
        "bounces": is_["bounce"],
        "leads": leads,
    }


def _place(fixed: dict[str, Tensor], u: Tensor, classes: dict[str, Tensor]) -> Tensor:
    """Positions and phases of K layouts: (B, K, O, P)."""
    f = {name: value[:, None].expand(u.shape[:3]) for name, value in fixed.items()}
    radius = torch.maximum(f["radius0"], f["radius1"])
    speed = torch.hypot(f["vx"], f["vy"])
    pair_lag = torch.where(f["leads"] & (f["orbit"] == 0), 1.85 * radius / speed.clamp_min(0.1), 0.0)
    coordinates = []
    for axis, velocity in ((0, f["vx"]), (1, f["vy"])):
        linear = torch.where(f["bounces"], 0.0, velocity)
        half = radius + 1.0 + f["orbit"] + linear.abs() * (8.0 + pair_lag / 2)
        room = (WORLD_PX - 2 * half).clamp_min(0.0)
        middle = WORLD_PX / 2 + (u[..., axis] - 0.5) * room
        coordinates.append(middle + linear * pair_lag / 2)  # a leader starts ahead of the middle
    cx, cy = coordinates
    paths = {
        name: f[name] for name in ("vx", "vy", "orbit", "omega", "height", "period", "radius0", "radius1")
    }
    paths["cx"] = cx
    paths["cy"] = torch.where(f["bounces"], _FLOOR_PX - radius, cy)
    paths["phase"] = 2 * math.pi * u[..., 2]
    paths["hit"] = 4.0 + 5.0 * u[..., 3]  # the floor is hit well within the clip
    paths["wall"] = torch.where(f["bounces"], radius, 0.0)
    paths["lag"] = torch.zeros_like(cx)
    path = torch.stack([paths[name] for name in PATH], dim=-1)
    return _follow(path, classes["leader"])


def _follow(path: Tensor, leader: Tensor) -> Tensor:
    """Give followers their leader's path, later: an object's width on a line, 0.3 turns on a circle."""
    slots = leader.clamp_min(0)[:, None, :, None].expand(path.shape)
    led = path.gather(2, slots)
    column = {name: led[..., i] for i, name in enumerate(PATH)}
    own_radius = path[..., PATH.index("radius0")]
    speed = torch.hypot(column["vx"], column["vy"]).clamp_min(0.1)
    straight = 0.95 * (column["radius0"] + own_radius) / speed
    turning = 0.3 * 2 * math.pi / column["omega"].abs().clamp_min(1e-3)
    led = led.clone()
    led[..., PATH.index("lag")] = torch.where(column["orbit"] > 0, turning, straight)
    led[..., PATH.index("radius0")] = own_radius
    led[..., PATH.index("radius1")] = own_radius
    return torch.where((leader >= 0)[:, None, :, None], led, path)


def _layout_fault(paths: Tensor, exists: Tensor) -> Tensor:
    """(B, K) >= 0; 0 = objects in the frame, hardly covered, and their relation plain to see."""
    times = torch.tensor([1.0, 2.0, 0.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0])
    x, y = positions(paths, times)  # (B, K, O, T)
    r = radii(paths, times)
    beyond = torch.stack([r - x, x + r - WORLD_PX, r - y, y + r - WORLD_PX]).amax(dim=(0, -1))
    fault = ((beyond / r.amax(dim=-1) - 0.2).clamp_min(0.0) * exists).sum(dim=-1) * 4
    for a, b in ((0, 1), (0, 2), (1, 2)):
        distance = torch.hypot(x[..., a, :] - x[..., b, :], y[..., a, :] - y[..., b, :])
        reach = r[..., a, :] + r[..., b, :]
        covered = (0.85 - distance / reach).clamp_min(0.0)
        both = exists[..., a] & exists[..., b]
        fault = fault + (3 * covered.amax(dim=-1) + covered.mean(dim=-1)) * both
    # the relation is that of frame 1 and must hold in frame 2
    across = (x[..., 0, :2] - x[..., 1, :2]).abs()
    along = (y[..., 0, :2] - y[..., 1, :2]).abs()
    main, other = torch.maximum(across, along), torch.minimum(across, along)
    unclear = (1.0 - (main - 1.7 * other) / 12.0).clamp_min(0.0).amax(dim=-1)
    return fault + 4 * unclear * (exists[..., 0] & exists[..., 1])


def relation_of(path: Tensor) -> Tensor:
    """(B,) class of the first object's place seen from the second, at frame 1."""
    x, y = positions(path[:, :2], torch.tensor([1.0]))
    dx, dy = (value[:, 0, 0] - value[:, 1, 0] for value in (x, y))
    horizontal = torch.where(dx < 0, 0, 1)
    vertical = torch.where(dy < 0, 2, 3)
    return torch.where(dx.abs() >= dy.abs(), horizontal, vertical)
