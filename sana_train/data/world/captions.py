"""Captions: several phrasings of what is in a scene, each naming every attribute that is read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sana_train.data.world.scene import (
    BACKGROUNDS,
    COLOURS,
    FREQUENCIES,
    MOTIONS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Scenes,
)

_NUMBERS = ("no objects", "one object", "two objects", "three objects")
_ADJECTIVE = ("plain", "striped", "checkered", "speckled", "shaded")
_NOUN = ("no pattern", "stripes", "checks", "speckles", "shading")
_BEFORE = (
    "still", "left drifting", "right drifting", "up drifting", "down drifting",
    "bouncing", "orbiting", "growing", "shrinking", "",
)  # fmt: skip
_FINITE = (
    "stays still", "drifts left", "drifts right", "drifts up", "drifts down",
    "bounces", "orbits", "grows", "shrinks", "follows the {leader}",
)  # fmt: skip
_PARTICIPLE = (
    "staying still", "drifting left", "drifting right", "drifting up", "drifting down",
    "bouncing", "orbiting", "growing", "shrinking", "following the {leader}",
)  # fmt: skip
_RELATION = ("left of", "right of", "above", "below")
_INVERSE = ("right of", "left of", "below", "above")
assert len(_FINITE) == len(_PARTICIPLE) == len(MOTIONS) and len(_ADJECTIVE) == len(TEXTURES)
assert len(_RELATION) == len(RELATIONS)


@dataclass(frozen=True)
class _Object:
    shape: str
    colour: str
    adjective: str  # with its frequency, where it has one
    noun: str
    before: str  # the motion, where it can stand before the noun
    finite: str
    participle: str


def captions(scenes: Scenes, phrasing: int | None = None) -> tuple[str, ...]:
    """One caption per scene, at most 40 words; ``phrasing`` (0..4) overrides each scene's own."""
    columns = {
        name: getattr(scenes, name).tolist()
        for name in ("count", "relation", "background", "mention", "phrasing", "shape", "colour", "texture",
                     "frequency", "motion", "leader")
    }  # fmt: skip
    result = []
    for i in range(len(scenes)):
        scene = {name: values[i] for name, values in columns.items()}
        pattern = scene["phrasing"] if phrasing is None else phrasing
        result.append(_PATTERNS[pattern](scene))
    return tuple(result)


def _objects(scene: dict[str, Any]) -> list[_Object]:
    """The scene's objects in the order of mention."""
    objects = []
    for slot in scene["mention"][: scene["count"]]:
        frequency = scene["frequency"][slot]
        prefix = f"{FREQUENCIES[frequency]} " if frequency >= 0 else ""
        texture, motion = scene["texture"][slot], scene["motion"][slot]
        leader = SHAPES[scene["shape"][scene["leader"][slot]]]
        objects.append(
            _Object(
                shape=SHAPES[scene["shape"][slot]],
                colour=COLOURS[scene["colour"][slot]],
                adjective=prefix + _ADJECTIVE[texture],
                noun=prefix + _NOUN[texture],
                before=_BEFORE[motion],
                finite=_FINITE[motion].format(leader=leader),
                participle=_PARTICIPLE[motion].format(leader=leader),
            )
        )
    return objects


def _relation(scene: dict[str, Any], inverse: bool) -> str:
    """'the circle is left of the square' or, inverse, 'the square is right of the circle'."""
    if scene["count"] < 2:
        return ""
    first, second = (SHAPES[scene["shape"][slot]] for slot in (0, 1))
    if inverse:
        return f"the {second} is {_INVERSE[scene['relation']]} the {first}"
    return f"the {first} is {_RELATION[scene['relation']]} the {second}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _sentences(*parts: str) -> str:
    return ". ".join(part for part in parts if part) + "."


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _plainly(scene: dict[str, Any]) -> str:
    objects = [_article(f"{o.adjective} {o.colour} {o.shape} {o.finite}") for o in _objects(scene)]
    background = f"{BACKGROUNDS[scene['background']]} background"
    return _sentences(_NUMBERS[scene["count"]], _join(objects), _relation(scene, False), background)


def _background_first(scene: dict[str, Any]) -> str:
    objects = [_article(f"{o.adjective} {o.colour} {o.shape} {o.participle}") for o in _objects(scene)]
    opening = f"{_NUMBERS[scene['count']]} on a {BACKGROUNDS[scene['background']]} background"
    return _sentences(opening, _join(objects), _relation(scene, True))


def _texture_after(scene: dict[str, Any]) -> str:
    objects = [f"{o.colour} {o.shape} with {o.noun} {o.participle}" for o in _objects(scene)]
    background = f"{BACKGROUNDS[scene['background']]} backdrop"
    return _sentences(background, _relation(scene, True), f"{_NUMBERS[scene['count']]}: {_join(objects)}")


def _relation_first(scene: dict[str, Any]) -> str:
    objects = [f"the {o.adjective} {o.colour} {o.shape} {o.finite}" for o in _objects(scene)]
    background = f"{BACKGROUNDS[scene['background']]} backdrop"
    return _sentences(_relation(scene, False), _join(objects), f"{_NUMBERS[scene['count']]}, {background}")


def _motion_first(scene: dict[str, Any]) -> str:
    objects = [
        _article(
            " ".join(
                filter(None, (o.before, o.adjective, o.colour, o.shape, "" if o.before else o.participle))
            )
        )
        for o in _objects(scene)
    ]
    opening = f"{BACKGROUNDS[scene['background']]} background with {_NUMBERS[scene['count']]}"
    return _sentences(opening, _join(objects), _relation(scene, False))


_PATTERNS: tuple[Callable[[dict[str, Any]], str], ...] = (
    _plainly, _background_first, _texture_after, _relation_first, _motion_first,
)  # fmt: skip
