"""Scenes from counters: a scene is a pure function of (spec, seed, split, index).

Legend: B scenes, O object slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sana_train.data.world.layout import lay_out, relation_of
from sana_train.data.world.scene import (
    BACKGROUNDS,
    COLOURS,
    FREQUENCIES,
    MOTIONS,
    NUM_SLOTS,
    SHAPES,
    TEXTURES,
    Scenes,
    WorldSpec,
)
from sana_train.data.world.streams import Stream, pick
from sana_train.utils.rng import SampleRng

Split = Literal["train", "heldout"]

NUM_PALETTES = 6
_LEADERS = tuple(
    MOTIONS.index(name) for name in ("drift_left", "drift_right", "drift_up", "drift_down", "orbit")
)
_FOLLOW = MOTIONS.index("follow")
_PERIODIC = tuple(TEXTURES.index(name) for name in ("stripes", "checks", "noise"))


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
    rng = Stream(seed, f"world/{split}", index)
    edges = torch.tensor(spec.count_weights).cumsum(0)
    count = 1 + torch.bucketize(rng("count") * edges[-1], edges[:-1], right=True)
    classes = _draw_classes(spec, rng, split, count)
    path = lay_out(spec, rng, classes)
    relation = torch.where(count > 1, relation_of(path), -1)
    exists = classes["shape"] >= 0
    return Scenes(
        count=count,
        relation=relation,
        background=pick(rng("background"), len(BACKGROUNDS)),
        depth=rng("depth", NUM_SLOTS).argsort(dim=1),
        mention=(rng("mention", NUM_SLOTS) + (~exists)).argsort(dim=1),
        phrasing=pick(rng("phrasing"), spec.num_phrasings),
        path=path,
        backdrop=_draw_backdrop(spec, rng),
        spec=spec,
        **classes,
    )


def _draw_classes(spec: WorldSpec, rng: Stream, split: Split, count: Tensor) -> dict[str, Tensor]:
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


def _propose(rng: Stream, attempt: int, count: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """One draw of the objects' classes and whether every follower has someone to follow."""
    u = rng(f"objects{attempt}", 5 * NUM_SLOTS + len(SHAPES) + len(COLOURS) + len(MOTIONS))
    shape_u, colour_u, motion_u, rest = u.split(
        [len(SHAPES), len(COLOURS), len(MOTIONS), 5 * NUM_SLOTS], dim=1
    )
    rest = rest.unflatten(1, (5, NUM_SLOTS))
    exists = torch.arange(NUM_SLOTS) < count[:, None]
    # distinct in a scene; sorted by shape, so that slots 0 and 1 are the pair that `relation` is about
    shape = torch.where(exists, shape_u.argsort(dim=1)[:, :NUM_SLOTS], len(SHAPES)).sort(dim=1).values
    race = -torch.log(motion_u)  # exponential race: a lower weight arrives later
    race[:, _FOLLOW] /= torch.where(count > 1, 1.7, 1e-9)  # its draws are refused more often
    motion = race.argsort(dim=1)[:, :NUM_SLOTS]
    order = torch.argsort(rest[:, 0] + (~exists), dim=1)
    motion = motion.gather(1, order.argsort(dim=1))  # the race's winners go to random slots
    texture = pick(rest[:, 1], len(TEXTURES))
    periodic = torch.isin(texture, torch.tensor(_PERIODIC))
    can_lead = torch.isin(motion, torch.tensor(_LEADERS)) & exists
    follows = (motion == _FOLLOW) & exists
    leader = torch.where(can_lead, rest[:, 3], -1.0).argmax(dim=1, keepdim=True)
    classes = {
        "shape": shape,
        "colour": colour_u.argsort(dim=1)[:, :NUM_SLOTS],
        "texture": texture,
        "frequency": torch.where(periodic, pick(rest[:, 2], len(FREQUENCIES)), -1),
        "motion": motion,
        "leader": torch.where(follows, leader, -1),
        "variant": pick(rest[:, 4], 1 << 16),
    }
    classes = {name: torch.where(exists, value, -1) for name, value in classes.items()}
    return classes, can_lead.any(dim=1) | ~follows.any(dim=1)


def _draw_backdrop(spec: WorldSpec, rng: Stream) -> Tensor:
    u = rng("backdrop", 8).unbind(1)
    pan = torch.where(u[4] < spec.pan_prob, torch.where(u[5] < 0.5, -1.5, 1.5), 0.0)
    dim = torch.where(u[6] < spec.light_prob, 0.7, 1.0)
    falls = u[7] < 0.5
    palette = pick(u[0], NUM_PALETTES).float()
    light = [torch.where(falls, 1.0, dim), torch.where(falls, dim, 1.0)]
    return torch.stack([palette, 2 * math.pi * u[1], u[2], u[3], pan, *light], dim=-1)
