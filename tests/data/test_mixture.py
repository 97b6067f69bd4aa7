"""Weighted sources: shares, epochs of each source, and clips that are those of the sources."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

from sana_train.data.datamodule import ClipDataModule
from sana_train.data.mixture import MixtureClips
from sana_train.data.steps import order_of


@pytest.fixture
def mixture(squares: Any) -> MixtureClips:
    kind = type(squares)
    return MixtureClips({"big": kind(50), "small": kind(7, seed=1)}, {"big": 3.0, "small": 1.0})


def test_each_source_goes_through_epochs_of_its_own(mixture: MixtureClips) -> None:
    clips = order_of(mixture, 5, None)(torch.arange(2000))
    for start, size in ((0, 50), (50, 7)):
        mine = clips[(clips >= start) & (clips < start + size)] - start
        whole = mine[: len(mine) // size * size].view(-1, size)
        assert len(whole) > 20
        assert torch.equal(whole.sort(dim=1).values, torch.arange(size).expand_as(whole))
        assert (whole[0] != whole[1]).any()
    assert abs(int((clips < 50).sum()) - 1500) <= 1


def test_sources_of_one_size_are_shuffled_apart(squares: Any) -> None:
    mixture = MixtureClips({"one": squares, "other": squares}, {"one": 1.0, "other": 1.0})
    clips = order_of(mixture, 0, None)(torch.arange(200))
    assert (clips[clips < 10] != clips[clips >= 10] - 10).any()


def test_a_batch_holds_the_clips_of_their_sources(mixture: MixtureClips) -> None:
    big, small = mixture.members["big"], mixture.members["small"]
    batch = mixture.batch([51, 3, 50, 49])
    assert batch.index.tolist() == [51, 3, 50, 49]
    assert batch.video is not None
    expected = [small.clip(1), big.clip(3), small.clip(0), big.clip(49)]  # type: ignore[attr-defined]
    assert torch.equal(batch.video, torch.stack(expected))
    assert batch.captions == tuple(f"{mixture.members['big'].caption(i)}" for i in (1, 3, 0, 49))  # type: ignore[attr-defined]
    assert batch.attributes["shape"].tolist() == [1, 3, 0, 4]


def test_ranks_see_one_stream(mixture: MixtureClips) -> None:
    def drawn(world_size: int, micro_batch: int) -> list[int]:
        module = ClipDataModule(mixture, mixture, global_batch=8, micro_batch=micro_batch, seed=3)
        rounds = module.split(world_size).accumulation * 3
        ranks = [list(islice(module.train_batches(4, world_size, r), rounds)) for r in range(world_size)]
        return torch.cat([ranks[r][j].index for j in range(rounds) for r in range(world_size)]).tolist()

    assert drawn(1, 8) == drawn(2, 2) == drawn(4, 1)


def test_an_attribute_of_some_sources_is_not_applicable_to_the_others(mixture: MixtureClips) -> None:
    small: Any = mixture.members["small"]
    whole = small.batch

    def without_shape(indices: Any) -> Any:
        batch = whole(indices)
        del batch.attributes["shape"]
        return batch

    small.batch = without_shape
    assert mixture.batch([0, 50]).attributes["shape"].tolist() == [0, -1]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"big": 1.0}, "need a weight each, got weights of big"),
        ({"big": 1.0, "smal": 1.0}, "got weights of big, smal"),
        ({"big": 1.0, "small": 0.0}, "above 0, got small: 0"),
        ({"big": 1.0, "small": float("nan")}, "above 0, got small: nan"),
    ],
)
def test_weights_must_fit_the_sources(mixture: MixtureClips, weights: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MixtureClips(mixture.members, weights)


def test_sources_of_other_sizes_say_so(squares: Any) -> None:
    class Halved(type(squares)):
        def batch(self, indices: Any) -> Any:
            batch = super().batch(indices)
            batch.video = batch.video[..., ::2]
            return batch

    mixture = MixtureClips({"a": squares, "b": Halved(3)}, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match=r"differ in the shape of video: .*\(3, 9, 32, 16\)"):
        mixture.batch([0, 10])


def test_an_empty_source_is_refused(squares: Any) -> None:
    with pytest.raises(ValueError, match="empty: none_here"):
        MixtureClips({"a": squares, "none_here": type(squares)(0)}, {"a": 1.0, "none_here": 1.0})
