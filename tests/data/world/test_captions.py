"""Every caption is parsed back by rules of its own and compared with the scene."""

from __future__ import annotations

import re

import pytest
import torch

from sana_train.data.world.captions import captions
from sana_train.data.world.sampling import sample_scenes
from sana_train.data.world.scene import (
    BACKGROUNDS,
    COLOURS,
    FREQUENCIES,
    MOTIONS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Scenes,
    WorldSpec,
)
from sana_train.text.hashed import HashedTextEncoder, tokenise

ADJECTIVES = {
    "plain": "plain",
    "striped": "stripes",
    "checkered": "checks",
    "speckled": "noise",
    "shaded": "gradient",
}
NOUNS = {
    "no pattern": "plain",
    "stripes": "stripes",
    "checks": "checks",
    "speckles": "noise",
    "shading": "gradient",
}
VERBS = {
    "still": "still",
    "drifts left": "drift_left", "drifting left": "drift_left", "left drifting": "drift_left",
    "drifts right": "drift_right", "drifting right": "drift_right", "right drifting": "drift_right",
    "drifts up": "drift_up", "drifting up": "drift_up", "up drifting": "drift_up",
    "drifts down": "drift_down", "drifting down": "drift_down", "down drifting": "drift_down",
    "stays still": "still", "staying still": "still", "bounces": "bounce", "bouncing": "bounce",
    "orbits": "orbit", "orbiting": "orbit", "grows": "grow", "growing": "grow",
    "shrinks": "shrink", "shrinking": "shrink", "follows the": "follow", "following the": "follow",
}  # fmt: skip
SIDES = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def _any(words: object) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # type: ignore[call-overload]


_FREQUENCY = f"(?:(?P<frequency>{_any(FREQUENCIES)}) )?"
_NAME = f"(?P<colour>{_any(COLOURS)}) (?P<shape>{_any(SHAPES)})"
_LEADER = f"(?: (?P<leader>{_any(SHAPES)}))?"
ADJECTIVE_PHRASE = re.compile(
    f"(?:(?P<before>{_any(VERBS)}) )?{_FREQUENCY}(?P<texture>{_any(ADJECTIVES)}) {_NAME}"
    f"(?: (?P<after>{_any(VERBS)}){_LEADER})?"
)
NOUN_PHRASE = re.compile(
    f"{_NAME} with {_FREQUENCY}(?P<texture>{_any(NOUNS)}) (?P<after>{_any(VERBS)}){_LEADER}"
)
RELATION = re.compile(f"the ({_any(SHAPES)}) is ({_any(SIDES)}) the ({_any(SHAPES)})")


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(WorldSpec(), 0, "heldout", torch.arange(300))


def _check(caption: str, scenes: Scenes, i: int) -> None:
    found = {}
    is_noun = " with " in caption and "background with" not in caption
    for match in (NOUN_PHRASE if is_noun else ADJECTIVE_PHRASE).finditer(caption):
        found[match["shape"]] = match.groupdict()
    shapes = [SHAPES[s] for s in scenes.shape[i].tolist() if s >= 0]
    assert sorted(found) == sorted(shapes)
    for slot, shape in enumerate(shapes):
        said = found[shape]
        assert said["colour"] == COLOURS[scenes.colour[i, slot]]
        textures = NOUNS if is_noun else ADJECTIVES
        assert textures[said["texture"]] == TEXTURES[scenes.texture[i, slot]]
        frequency = int(scenes.frequency[i, slot])
        assert said["frequency"] == (FREQUENCIES[frequency] if frequency >= 0 else None)
        motion = VERBS[said.get("before") or said["after"]]
        assert motion == MOTIONS[scenes.motion[i, slot]]
        if motion == "follow":
            assert said["leader"] == shapes[scenes.leader[i, slot]]
    number = re.search("(one|two|three) objects?", caption)
    assert number is not None
    assert ["one", "two", "three"].index(number[1]) + 1 == scenes.count[i]
    ground = re.search(f"({_any(BACKGROUNDS)}) back(ground|drop)", caption)
    assert ground is not None
    assert ground[1] == BACKGROUNDS[scenes.background[i]]
    relation = RELATION.search(caption)
    if len(shapes) == 1:
        assert relation is None
        return
    assert relation is not None
    side = SIDES[relation[2]]
    if relation[1] != shapes[0]:
        side = OPPOSITE[side]
    assert {relation[1], relation[3]} == set(shapes[:2])
    assert side == RELATIONS[scenes.relation[i]]


@pytest.mark.parametrize("phrasing", range(5))
def test_a_caption_says_all_that_is_read_back(scenes: Scenes, phrasing: int) -> None:
    for i, caption in enumerate(captions(scenes, phrasing)):
        _check(caption, scenes, i)


def test_captions_fit_the_text_encoder(scenes: Scenes) -> None:
    encoder = HashedTextEncoder()
    for phrasing in range(5):
        for caption in captions(scenes, phrasing):
            assert len(re.findall(r"\w+", caption)) <= 40
            assert len(tokenise(caption)) <= encoder.max_tokens


def test_a_caption_depends_on_its_scene_only(scenes: Scenes) -> None:
    together = captions(scenes)
    assert captions(scenes[torch.tensor([5, 2])]) == (together[5], together[2])
    assert len(set(together)) > 0.99 * len(together)


def test_all_phrasings_and_both_orders_of_mention_are_used(scenes: Scenes) -> None:
    assert set(scenes.phrasing.tolist()) == set(range(5))
    two = scenes[scenes.count == 2]
    assert 0.3 < (two.mention[:, 0] == 0).float().mean() < 0.7
