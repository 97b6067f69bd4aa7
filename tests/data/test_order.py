"""The order of clips: exact permutations, and the same batches however they are cut."""

from __future__ import annotations

import pickle

import pytest
import torch

from sana_train.data import order
from sana_train.data.order import BatchSplit, WindowShuffle, batch_indices, clip_indices, step_ordinals
from sana_train.utils.rng import hash64


@pytest.mark.parametrize("num_clips", [1, 2, 5, 16, 17, 1000])
def test_every_clip_comes_once_per_epoch(num_clips: int) -> None:
    for epoch in range(3):
        ordinals = torch.arange(epoch * num_clips, (epoch + 1) * num_clips)
        clips = clip_indices(7, ordinals, num_clips)
        assert sorted(clips.tolist()) == list(range(num_clips))


def test_epochs_and_seeds_differ() -> None:
    first = clip_indices(0, torch.arange(100), 100)
    assert (first != clip_indices(0, torch.arange(100, 200), 100)).any()
    assert (first != clip_indices(1, torch.arange(100), 100)).any()
    assert (first != torch.arange(100)).any()


def test_shuffle_has_no_order_left() -> None:
    """Over many epochs, each place holds each clip about equally often, and neighbours scatter."""
    num_clips, num_epochs = 16, 4096
    clips = clip_indices(3, torch.arange(num_clips * num_epochs), num_clips).reshape(num_epochs, num_clips)
    expected = num_epochs / num_clips
    counts = torch.stack([torch.bincount(clips[:, place], minlength=num_clips) for place in range(num_clips)])
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_squared < 225 + 5 * (2 * 225) ** 0.5  # (16 - 1)^2 degrees of freedom, 5 sigma
    followers = torch.bincount((clips[:, 1] - clips[:, 0]) % num_clips, minlength=num_clips)[1:]
    expected = num_epochs / (num_clips - 1)
    assert ((followers - expected) ** 2 / expected).sum().item() < 14 + 5 * 28**0.5


def test_the_order_is_pinned() -> None:
    """A run that resumes under newer code goes on in the order that it began with."""
    ordinals = torch.tensor([0, 1, 2, 999, 1000, 131071, 131072, 10**9])
    assert clip_indices(0, ordinals, 1000).tolist() == [62, 170, 800, 118, 623, 709, 296, 280]
    assert clip_indices(0, ordinals, 131072).tolist() == [
        20824,
        36733,
        507,
        13845,
        115747,
        76241,
        85050,
        21972,
    ]


def test_only_what_fell_outside_walks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing all samples until the last of them is inside costs ten times as much."""
    num_hashed = 0

    def count(values: torch.Tensor, key: torch.Tensor | int) -> torch.Tensor:
        nonlocal num_hashed
        num_hashed += values.numel()
        return hash64(values, key)

    monkeypatch.setattr(order, "hash64", count)
    clip_indices(0, torch.arange(4096), 65537)  # a bijection of 4 * 65,536 values: 4 tries on average
    assert num_hashed < 4096 * 6 * (1 + 4 * 1.2)


def test_a_step_is_independent_of_those_before() -> None:
    whole = clip_indices(5, torch.arange(40 * 12), 50)
    for step in (0, 7, 39):
        assert torch.equal(batch_indices(5, step, 50, 12), whole[step * 12 : step * 12 + 12])


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 24), (1, 4), (2, 6), (3, 8), (4, 3)])
def test_split_leaves_the_global_batch_as_it_was(world_size: int, micro_batch: int) -> None:
    splits = [BatchSplit(24, micro_batch, world_size, rank) for rank in range(world_size)]
    accumulation = splits[0].accumulation
    for step in (0, 3):
        parts = [
            split.ordinals(step * accumulation + part) for part in range(accumulation) for split in splits
        ]
        assert torch.equal(torch.cat(parts), step_ordinals(step, 24))


def test_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="24 clips does not divide into micro-batches of 5 on 2 ranks"):
        BatchSplit(24, 5, 2)


def test_no_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="num_clips=0"):
        batch_indices(0, 0, 0, 4)


def _shards(*sizes: int) -> list[range]:
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [range(start, start + size) for start, size in zip(starts, sizes)]


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("sizes", [(5,), (7, 100, 1, 33, 50, 50, 2, 9), (4,) * 13])
def test_windows_of_shards_lose_and_double_nothing(sizes: tuple[int, ...], window: int) -> None:
    order, num_clips = WindowShuffle(3, _shards(*sizes), window), sum(sizes)
    epochs = order(torch.arange(4 * num_clips)).view(4, num_clips)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(num_clips).expand(4, -1))
    if num_clips > 5:
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_a_window_reads_few_shards_at_a_time() -> None:
    """And all of their clips are mixed: neighbours in the stream are seldom neighbours in a shard."""
    order = WindowShuffle(0, _shards(*(100,) * 40), 4)
    clips = order(torch.arange(4000))
    shards = (clips // 100).view(10, 400)
    assert [len(window.unique()) for window in shards] == [4] * 10
    assert shards.unique(dim=1).unique().tolist() == list(range(40))
    assert (shards[:, 1:] != shards[:, :-1]).float().mean() > 0.6  # 3 of 4 are of another shard
    assert ((clips[1:] - clips[:-1]).abs() == 1).float().mean() < 0.02
    assert shards[:, 0].tolist() != sorted(shards[:, 0].tolist())


def test_a_window_of_shards_is_independent_of_what_was_asked_before() -> None:
    shards = _shards(*(10,) * 7)
    whole = WindowShuffle(1, shards, 2)(torch.arange(700))
    order = pickle.loads(pickle.dumps(WindowShuffle(1, shards, 2)))
    for start in (650, 3, 128, 0, 699):
        assert torch.equal(order(torch.arange(start, min(start + 40, 700))), whole[start : start + 40])


def test_the_order_by_windows_is_pinned() -> None:
    order = WindowShuffle(0, _shards(*(100,) * 10), 3)
    ordinals = torch.tensor([0, 1, 2, 299, 300, 999, 1000, 10**9])
    assert order(ordinals).tolist() == [586, 614, 580, 674, 372, 848, 968, 243]


@pytest.mark.parametrize(("shards", "window"), [([], 1), ([range(0)], 1), ([range(3)], 0)])
def test_no_shards_or_no_window_is_refused(shards: list[range], window: int) -> None:
    with pytest.raises(ValueError, match=r"at least (one|1) shard"):
        WindowShuffle(0, shards, window)
