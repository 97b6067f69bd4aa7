"""Streams take turns by weight: shares in any stretch, and each stream counted without a gap."""

from __future__ import annotations

import pytest
import torch

from sana_train.data.interleave import Interleave

WEIGHTS = [[1.0], [1.0, 1.0], [0.7, 0.3], [5.0, 3.0, 1.0, 1.0, 0.01], [1.0, 1e-6]]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_stream_is_counted_without_a_gap(weights: list[float]) -> None:
    turns = Interleave(weights, 3, "test")
    stream, number = turns(torch.arange(20_000))
    for which in range(len(weights)):
        mine = number[stream == which]
        assert torch.equal(mine, torch.arange(len(mine)))
    for items in (0, 1, 777, 20_000):
        counts = turns.counts(torch.tensor([items]))[:, 0]
        assert torch.equal(counts, torch.bincount(stream[:items], minlength=len(weights)))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("start", [0, 10**10])
def test_any_stretch_has_the_shares_of_the_weights(weights: list[float], start: int) -> None:
    """The difference of two running surpluses is the surplus of the stretch between them."""
    items = torch.arange(start, start + 50_000)
    stream, _ = Interleave(weights, 1, "test")(items)
    depth = (len(weights) - 1).bit_length()
    for which, weight in enumerate(weights):
        surplus = (stream == which).double().cumsum(0) - weight / sum(weights) * torch.arange(1, 50_001)
        assert (surplus.max() - surplus.min()).item() <= depth + 0.01


def test_a_far_item_costs_no_more_and_is_the_same_alone() -> None:
    turns = Interleave([2.0, 1.0, 1.0], 0, "test")
    many = turns(torch.arange(10**11, 10**11 + 100))
    for offset in (0, 42, 99):
        alone = turns(torch.tensor([10**11 + offset]))
        assert [int(value) for value in alone] == [int(value[offset]) for value in many]


def test_the_seed_decides_who_begins() -> None:
    first = {int(Interleave([1.0, 1.0], seed, "test")(torch.tensor([0]))[0]) for seed in range(16)}
    assert first == {0, 1}


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [-1.0], [float("nan")], [float("inf"), 1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights above 0"):
        Interleave(weights, 0, "test")
