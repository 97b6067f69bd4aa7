"""Captions: several phrasings of what is in a scene, each naming every attribute that is read back."""

from __future__ import annotations

from dataclasses import dataclass

from sana_train.data.world.scene import BACKGROUNDS, COLOURS, FREQUENCIES, MOTIONS, RELATIONS, SHAPES, TEXTURES, Scenes

_NUMBERS = ("no objects", "one object", "two objects", "three objects")
_ADJECTIVE = ("plain", "striped", "checkered", "speckled", "shaded")
_NOUN = ("no pattern", "stripes", "checks", "speckles", "shading")
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


def _objects(scene: dict) -> list[_Object]:
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
                finite=_FINITE[motion].format(leader=leader),
                participle=_PARTICIPLE[motion].format(leader=leader),
            )
        )
    return objects


def _relation(scene: dict, inverse: bool) -> str:
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


def _adjectives_first(scene: dict) -> str:
    objects = [f"a {o.adjective} {o.colour} {o.shape} {o.finite}" for o in _objects(scene)]
    background = f"{BACKGROUNDS[scene['background']]} background"
    return _sentences(_NUMBERS[scene["count"]], _join(objects), _relation(scene, False), background)


def _background_first(scene: dict) -> str:
    objects = [f"a {o.adjective} {o.colour} {o.shape} {o.participle}" for o in _objects(scene)]
    opening = f"{_NUMBERS[scene['count']]} on a {BACKGROUNDS[scene['background']]} background"
    return _sentences(opening, _join(objects), _relation(scene, True))


def _pattern_after(scene: dict) -> str:
    objects = [f"{o.colour} {o.shape} with {o.noun} {o.participle}" for o in _objects(scene)]
    background = f"{BACKGROUNDS[scene['background']]} backdrop"
    return _sentences(background, _relation(scene, True), f"{_NUMBERS[scene['count']]}: {_join(objects)}")


def _relation_first(scene: dict) -> str:
    objects = [f"the {o.shape} is {o.colour} and {o.adjective} and {o.finite}" for o in _objects(scene)]
    background = f"{BACKGROUNDS[scene['background']]} backdrop"
    return _sentences(_relation(scene, False), ", ".join(objects), f"{_NUMBERS[scene['count']]}, {background}")


def _motion_first(scene: dict) -> str:
    objects = [f"{o.participle}: a {o.colour} {o.adjective} {o.shape}" for o in _objects(scene)]
    background = f"{BACKGROUNDS[scene['background']]} background"
    return _sentences(", ".join(objects), f"{_NUMBERS[scene['count']]} in front of a {background}", _relation(scene, True))


_PATTERNS = (_adjectives_first, _background_first, _pattern_after, _relation_first, _motion_first)
