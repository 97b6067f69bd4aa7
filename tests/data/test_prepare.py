"""Shards are a pure function of their source, written once, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sana_train.data.prepare import render_shards
from sana_train.data.shards import ShardClips
from sana_train.types import Batch


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_bytes_follow_from_the_source(squares: Any, tmp_path: Path) -> None:
    first = contents(render_shards(squares, tmp_path / "one", clips_per_shard=4))
    time.sleep(1.1)  # a time of writing in the bytes would show
    second = contents(render_shards(squares, tmp_path / "two", clips_per_shard=4))
    assert sorted(first) == sorted(
        ["dataset.json"] + [f"shard-00000{i}.{kind}" for i in range(3) for kind in ("tar", "index.json")]
    )
    assert first == second
    other = contents(render_shards(type(squares)(10, seed=1), tmp_path / "three", clips_per_shard=4))
    assert other["shard-000000.tar"] != first["shard-000000.tar"]


def test_what_is_there_is_not_rendered_again(squares: Any, tmp_path: Path) -> None:
    render_shards(squares, tmp_path / "clips")
    squares.batch = None  # calling it would fail
    render_shards(squares, tmp_path / "clips")


def test_other_clips_are_never_overwritten(squares: Any, tmp_path: Path) -> None:
    out = render_shards(squares, tmp_path / "clips")
    before = contents(out)
    with pytest.raises(ValueError, match=r"source: found 'squares-10-0', wanted 'squares-9-0'"):
        render_shards(type(squares)(9), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"exists without a dataset\.json"):
        render_shards(squares, tmp_path / "mine")
    assert contents(out) == before


def test_interrupted_rendering_goes_on_where_it_stopped(squares: Any, tmp_path: Path) -> None:
    class StopsAt(type(squares)):  # type: ignore[misc]
        def batch(self, indices: Sequence[int]) -> Batch:
            if 8 in indices:
                raise KeyboardInterrupt
            rendered.extend(indices)
            return super().batch(indices)

    rendered: list[int] = []
    out = tmp_path / "clips"
    with pytest.raises(KeyboardInterrupt):
        render_shards(StopsAt(10), out, clips_per_shard=4)
    assert not out.exists()
    assert rendered == list(range(8))
    squares_batch, again = squares.batch, []
    squares.batch = lambda indices: again.extend(indices) or squares_batch(indices)
    render_shards(squares, out, clips_per_shard=4)
    assert again == [8, 9]
    reference = render_shards(type(squares)(10), tmp_path / "reference", clips_per_shard=4)
    assert contents(out) == contents(reference)


_WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import MovingSquares
from sana_train.data.prepare import render_shards

class Slow(MovingSquares):
    def batch(self, indices):
        if 6 in indices:
            Path({flag!r}).touch()
            time.sleep(60)
        return super().batch(indices)

render_shards(Slow(10), Path({out!r}), clips_per_shard=4)
"""


def test_killed_writer_publishes_nothing(squares: Any, tmp_path: Path) -> None:
    out, flag = tmp_path / "clips", tmp_path / "flag"
    code = _WRITER.format(tests=str(Path(__file__).parent), flag=str(flag), out=str(out))
    writer = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not flag.exists() and writer.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert flag.exists()
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert not out.exists()
    assert any(path.suffix == ".tar" for path in (tmp_path / ".clips.partial").iterdir())  # it was at work
    render_shards(squares, out, clips_per_shard=4)
    assert len(ShardClips(str(out), 9, 32, 32)) == 10
    assert contents(out) == contents(render_shards(squares, tmp_path / "reference", clips_per_shard=4))
    assert not (tmp_path / ".clips.partial").exists()
