"""Shards that are deleted, cut or written over while a loader reads them."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from sana_train.data.datamodule import MicroBatches
from sana_train.data.holes import DataLossError, allowed_holes
from sana_train.data.latent_clips import LatentClips
from sana_train.data.latents import precompute_latents
from sana_train.data.order import BatchSplit
from sana_train.data.prepare import render_shards
from sana_train.data.shards import HOLE_CAPTION, ShardClips
from sana_train.data.steps import steps_of
from sana_train.types import Batch

Source = ShardClips | LatentClips


@pytest.fixture
def squares(squares: Any) -> Any:
    squares.num_clips = 40
    return squares


@pytest.fixture
def folder(squares: Any, tmp_path: Path) -> Path:
    """Ten tars of four clips."""
    return render_shards(squares, tmp_path / "clips", clips_per_shard=4)


def open_clips(folder: Path, max_new_holes: int | None = None) -> ShardClips:
    return ShardClips(str(folder), 9, 32, 32, max_new_holes=max_new_holes)


Load = Callable[[Source, int], Iterator[Batch]]


@pytest.fixture
def loader() -> Iterator[Load]:
    """Micro-batches of 2, a permutation of all 40 clips every 20."""
    begun: list[Any] = []

    def load(source: Source, num_workers: int) -> Iterator[Batch]:
        batches = MicroBatches(source, steps_of(source, 0, BatchSplit(2, 2), None))
        begun.append(iter(DataLoader(batches, batch_size=None, num_workers=num_workers)))
        return begun[-1]

    yield load
    for each in begun:
        if hasattr(each, "_shutdown_workers"):
            each._shutdown_workers()  # left to the garbage collector it may take 10 s


def delete(tar: Path) -> None:
    tar.unlink()


def cut(tar: Path) -> None:
    os.truncate(tar, 600)  # behind the first header


def replace(tar: Path) -> None:
    """By a whole tar of as many bytes: only a checksum tells."""
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as file:
        for member in file:
            data[member.offset_data + member.size // 2] ^= 1
    tar.write_bytes(data)


FAULTS = {delete: "cannot be read: No such file", cut: "was cut", replace: "was changed: other bytes"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_lost_clips_are_reported_holes_and_shift_nothing(
    folder: Path, tmp_path: Path, loader: Load, num_workers: int, fault: Callable[[Path], None]
) -> None:
    truth = open_clips(shutil.copytree(folder, tmp_path / "copy"))
    clips = open_clips(folder)
    batches = loader(clips, num_workers)
    seen = [next(batches)]
    for tar in (0, 7):
        fault(folder / f"shard-{tar:06d}.tar")
    seen += [next(batches) for _ in range(39)]  # the rest of two epochs
    holes = set()
    for batch in seen:
        good = truth.batch(batch.index.tolist())
        assert batch.video is not None and good.video is not None
        for row, (index, weight) in enumerate(zip(batch.index.tolist(), batch.weight.tolist())):
            if weight:
                assert torch.equal(batch.video[row], good.video[row])
                assert batch.captions[row] == good.captions[row]
            else:
                holes.add(index)
                assert batch.captions[row] == HOLE_CAPTION
    assert holes <= {*range(4), *range(28, 32)}
    assert len(holes) >= 4  # a deleted tar that a worker has open is still read
    found = clips._new_holes.found()  # by whichever process
    assert set(found) == holes
    assert all(FAULTS[fault] in reason for _, reason in found.values())
    assert all(name == f"shard-{i // 4:06d}.tar {i:08d}" for i, (name, _) in found.items())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_stop_the_run_with_a_list_whichever_worker_found_them(
    folder: Path, loader: Load, num_workers: int
) -> None:
    clips = open_clips(folder, max_new_holes=5)
    batches = loader(clips, num_workers)
    next(batches)
    for tar in range(10):
        cut(folder / f"shard-{tar:06d}.tar")
    lost: set[int] = set()

    def read_on() -> None:
        for batch in batches:
            lost.update(batch.index[batch.weight == 0].tolist())

    with pytest.raises(DataLossError) as stopped:
        read_on()
    message = str(stopped.value)
    assert f" clips of {folder} became holes" in message
    assert "data.*.max_new_holes=5 are put up with" in message
    assert "the same command again" in message and "validate_data" in message
    listed = message.partition("Lost:\n")[2].partition("\nReasons:")[0].splitlines()
    # Workers stop at their own next finding: one more than allowed, and one for each other worker.
    assert message.startswith(f"{len(listed)} clips")
    assert 6 <= len(listed) <= 6 + max(0, num_workers - 1)
    for index in lost:
        line = f"clip {index} (shard-{index // 4:06d}.tar {index:08d}): its shard was cut"
        assert any(line in each for each in listed)


def test_a_clip_lost_to_several_workers_counts_once(folder: Path, loader: Load) -> None:
    clips = open_clips(folder, max_new_holes=4)
    batches = loader(clips, 2)
    next(batches)
    delete(folder / "shard-000003.tar")
    for _ in range(200):  # ten epochs: both workers have met all four
        next(batches)
    assert set(clips._new_holes.found()) <= set(range(12, 16))


def test_the_count_goes_along_to_spawned_workers(folder: Path) -> None:
    clips = open_clips(folder)
    cut(folder / "shard-000000.tar")
    dataset: Any = [[0, 1], [2, 39]]
    batches = DataLoader(
        dataset, batch_size=None, collate_fn=clips.batch, num_workers=1, multiprocessing_context="spawn"
    )
    assert [batch.weight.tolist() for batch in batches] == [[0, 0], [0, 1]]
    assert set(clips._new_holes.found()) == {0, 1, 2}


@pytest.mark.parametrize("fault", FAULTS)
def test_latents_that_are_lost_are_holes_up_to_a_limit(
    squares: Any,
    block_means: Any,
    word_hashes: Any,
    tmp_path: Path,
    loader: Load,
    fault: Callable[[Path], None],
) -> None:
    out = precompute_latents(
        squares, block_means, word_hashes, tmp_path / "latents", batch_size=8, clips_per_shard=4
    )
    clips = LatentClips(out, {}, max_new_holes=3)
    batches = loader(clips, 2)
    next(batches)
    fault(out / "shard-000004.tar")

    def read_on() -> None:
        for _ in range(100):
            assert next(batches).latents is not None

    with pytest.raises(DataLossError, match=r"4 clips .* latents\.max_new_holes=3") as stopped:
        read_on()
    assert FAULTS[fault] in str(stopped.value)
    assert "shard-000004.tar 00000016" in str(stopped.value)


def test_nothing_lasting_is_made_of_a_lost_clip(
    squares: Any, block_means: Any, word_hashes: Any, folder: Path, tmp_path: Path
) -> None:
    clips = open_clips(folder)
    data = (folder / "shard-000005.tar").read_bytes()
    cut(folder / "shard-000005.tar")
    out = tmp_path / "latents"
    with pytest.raises(DataLossError, match="would be a hole for ever"):
        precompute_latents(clips, block_means, word_hashes, out, batch_size=8, clips_per_shard=8)
    assert not out.exists()
    (folder / "shard-000005.tar").write_bytes(data)
    precompute_latents(open_clips(folder), block_means, word_hashes, out, batch_size=8, clips_per_shard=8)
    assert not LatentClips(out, {}).holes


def test_by_default_one_in_a_hundred_may_be_lost() -> None:
    assert [allowed_holes(num_clips) for num_clips in (1, 1000, 1_000_000)] == [10, 10, 10_000]


def test_a_limit_below_zero_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"max_new_holes=-1: expected 0 or more"):
        open_clips(folder, max_new_holes=-1)
