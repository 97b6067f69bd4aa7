"""The world's audio latents: a function of the motions in a clip, told apart by it."""

from __future__ import annotations

import pytest
import torch

from sana_train.data.world.scene import MOTIONS
from sana_train.data.world.sound import sound

LENGTH, CHANNELS = 27, 16


def of(*motions: int) -> torch.Tensor:
    return sound(torch.tensor([[*motions, -1]]), LENGTH, CHANNELS)[0]


def test_no_object_makes_no_sound() -> None:
    assert torch.equal(of(-1), torch.zeros(LENGTH, CHANNELS))


def test_order_and_empty_slots_do_not_matter() -> None:
    assert torch.equal(of(2, 5), of(5, 2))
    assert torch.equal(of(2, -1), of(2))


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
def test_a_motion_is_told_by_its_sound(motion: int) -> None:
    """The nearest of all voices to a motion's sound is its own, other objects beside it or not."""
    voices = torch.stack([of(each) for each in range(len(MOTIONS))]).flatten(1)
    assert int((voices @ of(motion).flatten()).argmax()) == motion
    other = (motion + 1) % len(MOTIONS)
    nearest = torch.nn.functional.cosine_similarity(voices, of(motion, other).flatten(), dim=1)
    assert set(nearest.topk(2).indices.tolist()) == {motion, other}


def test_sounds_are_about_as_large_as_unit_noise() -> None:
    motions = torch.randint(0, len(MOTIONS), (64, 3), generator=torch.Generator().manual_seed(0))
    assert 0.5 < float(sound(motions, LENGTH, 128).std()) < 1.5
