"""What a scene of the world is made of, and many scenes packed as tensors.

All lengths are in world pixels (the world is 128 across at any rendered size), all times in frames.
Legend: B scenes, O object slots, S shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

WORLD_PX = 128.0
NUM_SLOTS = 3  # objects in a scene at most
MID_FRAME = 8.0  # linear motion is written around the middle of a 17-frame clip
LAST_FRAME = 16.0

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("plain", "stripes", "checks", "noise", "gradient")
FREQUENCIES = ("fine", "medium", "coarse")
MOTIONS = (
    "still",
    "drift_left",
    "drift_right",
    "drift_up",
    "drift_down",
    "bounce",
    "orbit",
    "grow",
    "shrink",
    "follow",
)
RELATIONS = ("left", "right", "above", "below")
BACKGROUNDS = ("flat", "fading", "tiled", "horizon", "spotlit")

# Columns of ``Scenes.path``. A path is x = fold(cx + vx (t-8) + R cos(phase + w t)) and
# y = cy + vy (t-8) + R sin(phase + w t) - 4 H s (1-s), s = frac((t - hit) / period), at t - lag;
# terms that a motion does not use are zero.
PATH = (
    "cx", "cy", "vx", "vy", "orbit", "omega", "phase", "height", "period", "hit", "wall",
    "lag", "radius0", "radius1",
)  # fmt: skip
# Columns of ``Scenes.backdrop``: palette of two tones, its texture's parameters, brightness over time.
BACKDROP = ("palette", "angle", "offset_x", "offset_y", "pan", "light0", "light1")


@dataclass(frozen=True)
class WorldSpec:
    """How hard the world is.

    Args:
        count_weights: relative frequency of scenes of 1, 2, 3 objects.
        radius_min_px: smallest radius of an object.
        radius_max_px: largest radius in a scene of one object; each further object takes 2.5 px off.
        periods_px: texture periods of the fine, medium and coarse class.
        texture_contrast: 1 = full distance between a texture's two tones, 0 = none.
        num_looks: equivalent looks of a texture: stripe directions (2 at most) and noise fields.
        speed_min_px: slowest drift per frame.
        speed_max_px: fastest drift per frame.
        pan_prob: share of scenes whose backdrop slides sideways, under objects that keep their own paths.
        light_prob: share of scenes that get darker or brighter over the clip.
        layout_rounds: how often an object may be moved to make a scene clearer (covered objects,
            ambiguous relations).
        num_phrasings: how many caption patterns are used, at most 5.
        holdout_seed: chooses the attribute pairs that only held-out scenes show.
    """

    count_weights: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.25])
    radius_min_px: float = 18.0
    radius_max_px: float = 26.0
    periods_px: list[float] = field(default_factory=lambda: [8.0, 12.0, 18.0])
    texture_contrast: float = 1.0
    num_looks: int = 2
    speed_min_px: float = 2.4
    speed_max_px: float = 3.4
    pan_prob: float = 0.25
    light_prob: float = 0.25
    layout_rounds: int = 18
    num_phrasings: int = 5
    holdout_seed: int = 0

    def __post_init__(self) -> None:
        if len(self.count_weights) != 3 or min(self.count_weights) < 0 or not any(self.count_weights):
            raise ValueError(
                f"count_weights={self.count_weights}: expected 3 weights >= 0, for scenes of 1, 2, 3 objects"
            )
        if len(self.periods_px) != len(FREQUENCIES):
            raise ValueError(
                f"periods_px={self.periods_px}: expected {len(FREQUENCIES)}, from fine to coarse"
            )
        if not 10 <= self.radius_min_px <= self.radius_max_px - 5 or self.radius_max_px > 27:
            raise ValueError(
                f"radius_min_px={self.radius_min_px}, radius_max_px={self.radius_max_px}: expected "
                "10 <= min <= max - 5 and max <= 27 (an object is painted through a 64 px window)"
            )
        if not 1 <= self.num_phrasings <= 5:
            raise ValueError(f"num_phrasings={self.num_phrasings}: expected 1 to 5")
        if not 1 <= self.num_looks <= 16:
            raise ValueError(f"num_looks={self.num_looks}: expected 1 to 16")


@dataclass(frozen=True)
class Scenes:
    """B scenes of up to O objects, sorted by shape; empty slots hold -1 in every class.

    Attributes:
        count: (B,) number of objects.
        shape, colour, texture, frequency, motion: (B, O) classes; frequency is -1 for plain and gradient.
        leader: (B, O) slot that an object follows, -1 if it goes its own way.
        relation: (B,) where the first object is, seen from the second, at frame 1; -1 if alone.
        background: (B,) class.
        depth: (B, O) permutation of slots, painted from back to front.
        mention: (B, O) permutation of slots, as captions name them (empty slots last).
        phrasing: (B,) caption pattern.
        variant: (B, O) which of the equivalent looks of a texture (stripe direction, noise field).
        path: (B, O, len(PATH)) float32.
        backdrop: (B, len(BACKDROP)) float32.
        spec: the world they come from.
    """

    count: Tensor
    shape: Tensor
    colour: Tensor
    texture: Tensor
    frequency: Tensor
    motion: Tensor
    leader: Tensor
    relation: Tensor
    background: Tensor
    depth: Tensor
    mention: Tensor
    phrasing: Tensor
    variant: Tensor
    path: Tensor
    backdrop: Tensor
    spec: WorldSpec

    def __len__(self) -> int:
        return self.count.shape[0]

    def _map(self, function: Any) -> Scenes:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Scenes(**{k: function(v) if isinstance(v, Tensor) else v for k, v in values.items()})

    def __getitem__(self, which: slice | Tensor) -> Scenes:
        return self._map(lambda value: value[which])

    def attributes(self) -> dict[str, Tensor]:
        """Ground truth as in ``Batch.attributes``: per scene (B,), or (B, S) keyed by shape.

        ``shape`` is presence 0/1; the others hold the class of the object of that shape, -1 if there
        is none (or, for frequency, if its texture has no period).
        """
        keyed = {}
        slots = self.shape.clamp_min(0)
        exists = self.shape >= 0
        for name in ("colour", "texture", "frequency", "motion"):
            table = torch.full((len(self), len(SHAPES) + 1), -1, dtype=torch.int64)
            where = torch.where(exists, slots, len(SHAPES))  # empty slots write to a spare column
            keyed[name] = table.scatter(1, where, getattr(self, name))[:, :-1]
        presence = (keyed["motion"] >= 0).to(torch.int64)
        scene = {"count": self.count, "relation": self.relation, "background": self.background}
        return {"shape": presence, **keyed, **scene}
