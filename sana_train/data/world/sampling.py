"""Scenes from counters: a scene is a pure function of (spec, seed, split, index).

Legend: B scenes, O object slots, K places tried, T times looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sana_train.data.world.motion import positions, radii
from sana_train.data.world.scene import (
    BACKGROUNDS,
    COLOURS,
    FREQUENCIES,
    MOTIONS,
    PATH,
    SHAPES,
    TEXTURES,
    WORLD_PX,
    Scenes,
    WorldSpec,
)
from sana_train.utils.rng import SampleRng

Split = Literal["train", "heldout"]

NUM_SLOTS = 3
NUM_PALETTES = 6
_LEADERS = tuple(MOTIONS.index(name) for name in ("drift_left", "drift_right", "drift_up", "drift_down", "orbit"))
_FOLLOW = MOTIONS.index("follow")
_PERIODIC = tuple(TEXTURES.index(name) for name in ("stripes", "checks", "noise"))
_FOLLOW_RADIUS_PX = 19.0  # two in a row must fit the frame
_FLOOR_PX = 122.0
_TRIES = 12  # new places tried for an object in one round


@dataclass(frozen=True)
class HeldOut:
    """Attribute pairs that no train scene shows; every held-out scene shows at least one."""

    shape_colour: Tensor  # (shapes, colours) bool
    shape_motion: Tensor  # (shapes, motions) bool
    texture_colour: Tensor  # (textures, colours) bool

    @staticmethod
    def of(spec: WorldSpec) -> HeldOut:
        """One partner per value, chosen by hash, so that every single value stays common in train."""
        rng = SampleRng(spec.holdout_seed, torch.zeros(1, dtype=torch.int64))

        def table(stream: str, rows: int, columns: int) -> Tensor:
            partner = rng.uniform(f"holdout/{stream}", (columns,))[0].argsort()[:rows]
            return torch.zeros(rows, columns, dtype=torch.bool).scatter(1, partner[:, None], True)

        return HeldOut(
            table("shape_colour", len(SHAPES), len(COLOURS)),
            table("shape_motion", len(SHAPES), len(MOTIONS)),
            table("texture_colour", len(TEXTURES), len(COLOURS)),
        )

    def shown(self, shape: Tensor, colour: Tensor, texture: Tensor, motion: Tensor) -> Tensor:
        """(B,) bool: an object of the scene has a held-out pair. Inputs (B, O), -1 = empty."""
        s, c, x, m = (value.clamp_min(0) for value in (shape, colour, texture, motion))
        pair = self.shape_colour[s, c] | self.shape_motion[s, m] | self.texture_colour[x, c]
        return (pair & (shape >= 0)).any(dim=1)


def sample_scenes(spec: WorldSpec, seed: int, split: Split, indices: Sequence[int] | Tensor) -> Scenes:
    """The scenes of ``indices``, in that order.

    Raises:
        ValueError: unknown split or negative index.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split={split!r}: expected 'train' or 'heldout'")
    index = torch.as_tensor(indices, dtype=torch.int64).cpu()
    if index.numel() and int(index.min()) < 0:
        raise ValueError(f"scene indices must be >= 0, got {int(index.min())}")
    rng = _Stream(seed, f"world/{split}", index)
    edges = torch.tensor(spec.count_weights).cumsum(0)
    count = 1 + torch.bucketize(rng("count") * edges[-1], edges[:-1], right=True)
    classes = _draw_classes(spec, rng, split, count)
    path = _lay_out(spec, rng, classes)
    relation = torch.where(count > 1, _relation(path), -1)
    exists = classes["shape"] >= 0
    return Scenes(
        count=count,
        relation=relation,
        background=_pick(rng("background"), len(BACKGROUNDS)),
        depth=rng("depth", NUM_SLOTS).argsort(dim=1),
        mention=(rng("mention", NUM_SLOTS) + (~exists)).argsort(dim=1),
        phrasing=_pick(rng("phrasing"), spec.num_phrasings),
        path=path,
        backdrop=_draw_backdrop(spec, rng),
        spec=spec,
        **classes,
    )


class _Stream:
    """Uniform numbers of named streams; rows can be narrowed to redraw some scenes only."""

    def __init__(self, seed: int, prefix: str, index: Tensor) -> None:
        self.seed, self.prefix, self.index = seed, prefix, index
        self._rng = SampleRng(seed, index)

    def __call__(self, name: str, *shape: int) -> Tensor:
        return self._rng.uniform(f"{self.prefix}/{name}", shape)

    def rows(self, which: Tensor) -> _Stream:
        return _Stream(self.seed, self.prefix, self.index[which])


def _pick(uniform: Tensor, num_classes: int) -> Tensor:
    return (uniform * num_classes).to(torch.int64).clamp_max(num_classes - 1)


def _draw_classes(spec: WorldSpec, rng: _Stream, split: Split, count: Tensor) -> dict[str, Tensor]:
    """Classes of all objects, redrawn per scene until they suit the split; the count stays."""
    held = HeldOut.of(spec)
    result: dict[str, Tensor] = {}
    pending = torch.arange(len(count))
    attempt = 0
    while len(pending):
        drawn, leads = _propose(rng.rows(pending), attempt, count[pending])
        shown = held.shown(drawn["shape"], drawn["colour"], drawn["texture"], drawn["motion"])
        good = leads & (shown == (split == "heldout"))
        for name, value in drawn.items():
            table = result.setdefault(name, torch.full((len(count), NUM_SLOTS), -1, dtype=torch.int64))
            table[pending[good]] = value[good]
        pending = pending[~good]
        attempt += 1
    return result


def _propose(rng: _Stream, attempt: int, count: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """One draw of the objects' classes and whether every follower has someone to follow."""
    u = rng(f"objects{attempt}", 5 * NUM_SLOTS + len(SHAPES) + len(COLOURS) + len(MOTIONS))
    shape_u, colour_u, motion_u, rest = u.split([len(SHAPES), len(COLOURS), len(MOTIONS), 5 * NUM_SLOTS], dim=1)
    rest = rest.unflatten(1, (5, NUM_SLOTS))
    exists = torch.arange(NUM_SLOTS) < count[:, None]
    # distinct in a scene; sorted by shape, so that slots 0 and 1 are the pair that `relation` is about
    shape = torch.where(exists, shape_u.argsort(dim=1)[:, :NUM_SLOTS], len(SHAPES)).sort(dim=1).values
    race = -torch.log(motion_u)  # exponential race: a lower weight arrives later
    race[:, _FOLLOW] /= torch.where(count > 1, 1.7, 1e-9)  # its draws are refused more often
    motion = race.argsort(dim=1)[:, :NUM_SLOTS]
    order = torch.argsort(rest[:, 0] + (~exists), dim=1)
    motion = motion.gather(1, order.argsort(dim=1))  # the race's winners go to random slots
    texture = _pick(rest[:, 1], len(TEXTURES))
    periodic = torch.isin(texture, torch.tensor(_PERIODIC))
    can_lead = torch.isin(motion, torch.tensor(_LEADERS)) & exists
    follows = (motion == _FOLLOW) & exists
    leader = torch.where(can_lead, rest[:, 3], -1.0).argmax(dim=1, keepdim=True)
    classes = {
        "shape": shape,
        "colour": colour_u.argsort(dim=1)[:, :NUM_SLOTS],
        "texture": texture,
        "frequency": torch.where(periodic, _pick(rest[:, 2], len(FREQUENCIES)), -1),
        "motion": motion,
        "leader": torch.where(follows, leader, -1),
        "variant": _pick(rest[:, 4], 1 << 16),
    }
    classes = {name: torch.where(exists, value, -1) for name, value in classes.items()}
    return classes, can_lead.any(dim=1) | ~follows.any(dim=1)


def _lay_out(spec: WorldSpec, rng: _Stream, classes: dict[str, Tensor]) -> Tensor:
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


def _fixed_motion(spec: WorldSpec, rng: _Stream, classes: dict[str, Tensor]) -> dict[str, Tensor]:
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
    paths = {name: f[name] for name in ("vx", "vy", "orbit", "omega", "height", "period", "radius0", "radius1")}
    paths["cx"] = cx
    paths["cy"] = torch.where(f["bounces"], _FLOOR_PX - radius, cy)
    paths["phase"] = 2 * math.pi * u[..., 2]
    paths["hit"] = 4.0 + 5.0 * u[..., 3]  # the floor is hit well within the clip
    paths["wall"] = torch.where(f["bounces"], radius, 0.0)
    paths["lag"] = torch.zeros_like(cx)
    path = torch.stack([paths[name] for name in PATH], dim=-1)
    return _follow(path, classes["leader"])


def _follow(path: Tensor, leader: Tensor) -> Tensor:
    """Give followers their leader's path, later: about one object's width on a line, 0.3 turns on a circle."""
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


def _relation(path: Tensor) -> Tensor:
    """(B,) class of the first object's place seen from the second, at frame 1."""
    x, y = positions(path[:, :2], torch.tensor([1.0]))
    dx, dy = (value[:, 0, 0] - value[:, 1, 0] for value in (x, y))
    horizontal = torch.where(dx < 0, 0, 1)
    vertical = torch.where(dy < 0, 2, 3)
    return torch.where(dx.abs() >= dy.abs(), horizontal, vertical)


def _draw_backdrop(spec: WorldSpec, rng: _Stream) -> Tensor:
    u = rng("backdrop", 8).unbind(1)
    pan = torch.where(u[4] < spec.pan_prob, torch.where(u[5] < 0.5, -1.5, 1.5), 0.0)
    dim = torch.where(u[6] < spec.light_prob, 0.7, 1.0)
    falls = u[7] < 0.5
    palette = _pick(u[0], NUM_PALETTES).float()
    light = [torch.where(falls, 1.0, dim), torch.where(falls, dim, 1.0)]
    return torch.stack([palette, 2 * math.pi * u[1], u[2], u[3], pan, *light], dim=-1)
