"""Encoding by stages: what is written is what the encoders gave, in order, and errors end all stages."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from sana_train.data import encode_shards
from sana_train.data.encode_shards import LoadedClip, ShardEncoder, ShardWork, hole
from sana_train.data.latents import inspect_latents
from sana_train.data.pipeline import prefetch
from sana_train.data.tars import TarFolder
from sana_train.data.video import to_float, to_uint8
from sana_train.types import VideoShape

VIDEO = VideoShape(9, 32, 32)
CPU = torch.device("cpu")


def encoder(
    autoencoders: dict[str, Any], text: Any, batch_size: int = 3, num_threads: int = 2
) -> ShardEncoder:
    return ShardEncoder(autoencoders, text, CPU, VIDEO, torch.float32, batch_size, num_threads)


def work_of(folder: Path, names: list[str], ends: list[int]) -> list[ShardWork]:
    """Shards of the clips up to each of ``ends``."""
    ranges = [range(start, end) for start, end in zip([0, *ends], ends)]
    return [
        ShardWork(clips, {name: folder / name / f"shard-{i:06d}.tar" for name in names})
        for i, clips in enumerate(ranges)
    ]


@pytest.fixture
def load_square(squares: Any) -> Callable[[int], LoadedClip]:
    def load_clip(index: int) -> LoadedClip:
        time.sleep(0.002 * (index % 3))  # clips are not ready in the order they were asked for
        if index == 5:
            return hole("five", "it is broken")
        info = {"caption": squares.caption(index), "attributes": {"shape": index % 5}, "problem": None}
        return LoadedClip(f"clip-{index}", to_uint8(squares.clip(index)), info)

    return load_clip


def test_two_spaces_are_written_clip_by_clip(
    squares: Any, block_means: Any, word_hashes: Any, load_square: Any, tmp_path: Path
) -> None:
    other, counted = type(block_means)(gain=2.0), []
    spaces = {"one": block_means, "two": other}
    encoder(spaces, word_hashes).run(work_of(tmp_path, list(spaces), [4, 5, 10]), load_square, counted.append)
    assert sum(counted) == 10
    one, two = (TarFolder(tmp_path / name, inspect_latents) for name in spaces)
    keys = [sample.key for sample in one.samples]
    assert keys == [sample.key for sample in two.samples]
    assert keys == [f"clip-{i}" if i != 5 else "five" for i in range(10)]
    assert [len(clips) for clips in one.clips_of_tars()] == [4, 1, 5]
    assert {s.key: s.facts["problem"] for s in one.samples if s.facts["problem"]} == {"five": "it is broken"}
    assert "safetensors" not in one.samples[5].members
    for index in (0, 4, 6, 9):
        tensors = load(one.read(index)["safetensors"])
        pixels = to_float(to_uint8(squares.clip(index)))[None]
        assert torch.equal(tensors["latents"], block_means.encode(pixels)[0])
        assert torch.equal(load(two.read(index)["safetensors"])["latents"], other.encode(pixels)[0])
        assert len(tensors["context"]) == len(squares.caption(index).split())


def test_only_what_a_shard_is_missing_is_encoded(
    block_means: Any, word_hashes: Any, load_square: Any, tmp_path: Path
) -> None:
    class Never(type(block_means)):  # type: ignore[misc]
        def encode(self, video: Tensor) -> Tensor:
            raise AssertionError

    work = work_of(tmp_path, ["one"], [4])
    encoder({"one": block_means, "never": Never()}, word_hashes).run(work, load_square, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("where", ["load", "encode", "write"])
def test_an_error_anywhere_ends_everything_and_leaves_whole_shards(
    block_means: Any, word_hashes: Any, load_square: Any, tmp_path: Path, where: str
) -> None:
    before = set(threading.enumerate())

    class Breaks(type(block_means)):  # type: ignore[misc]
        calls = 0

        def encode(self, video: Tensor) -> Tensor:
            self.calls += 1
            if where == "encode" and self.calls == 4:
                raise RuntimeError("trouble in encode")
            return super().encode(video)

    def load_clip(index: int) -> LoadedClip:
        if where == "load" and index == 8:
            raise RuntimeError("trouble in load")
        return load_square(index)

    work = work_of(tmp_path, ["one"], [4, 8, 10])
    if where == "write":
        (tmp_path / "file").touch()
        work[2] = ShardWork(work[2].clips, {"one": tmp_path / "file" / "shard-000002.tar"})
    with pytest.raises((RuntimeError, OSError), match=r"trouble|file"):
        encoder({"one": Breaks()}, word_hashes).run(work, load_clip, lambda _: None)
    assert [path for path in tmp_path.rglob(".*") if path.name != ".index.lock"] == []
    whole = [path.name for path in sorted((tmp_path / "one").glob("*.tar"))]
    assert whole in (["shard-000000.tar"], ["shard-000000.tar", "shard-000001.tar"])
    assert set(threading.enumerate()) <= before


def test_a_signal_while_a_shards_end_is_queued_ends_everything(
    block_means: Any, word_hashes: Any, load_square: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())

    class Interrupted(queue.Queue[Any]):
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            if item is None:
                raise SystemExit(75)
            super().put(item, block, timeout)

    only = encoder({"one": block_means}, word_hashes)
    stand_in = SimpleNamespace(Queue=Interrupted, Full=queue.Full, Empty=queue.Empty)
    monkeypatch.setattr(encode_shards, "queue", stand_in)
    with pytest.raises(SystemExit):
        only.run(work_of(tmp_path, ["one"], [4]), load_square, lambda _: None)
    assert list(tmp_path.rglob("*.tar")) == []
    assert set(threading.enumerate()) <= before


def test_stages_work_beside_each_other(
    block_means: Any, word_hashes: Any, load_square: Any, tmp_path: Path
) -> None:
    """The encoder waits inside its first batch for the second to be loaded, which it would otherwise bar."""
    is_loading = threading.Event()

    class Waits(type(block_means)):  # type: ignore[misc]
        def encode(self, video: Tensor) -> Tensor:
            assert is_loading.wait(timeout=20)
            return super().encode(video)

    def load_clip(index: int) -> LoadedClip:
        if index == 1:
            is_loading.set()
        return load_square(index)

    one_by_one = encoder({"one": Waits()}, word_hashes, batch_size=1, num_threads=1)
    one_by_one.run(work_of(tmp_path, ["one"], [3]), load_clip, lambda _: None)


def test_prefetch_keeps_order_raises_and_closes() -> None:
    closed = threading.Event()

    def numbers(stop: int) -> Generator[int, None, None]:
        try:
            yield from range(stop)
            raise RuntimeError("trouble")
        finally:
            closed.set()

    taken = []
    with pytest.raises(RuntimeError, match="trouble"):
        taken.extend(iter(prefetch(numbers(5), 2)))
    closed.clear()
    ahead = prefetch(numbers(10**9), 2)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    ahead.close()
    assert closed.is_set()
