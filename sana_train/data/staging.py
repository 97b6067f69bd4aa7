"""Folders of shards that are written once, can be continued, and appear only when complete."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sana_train.protocols import ClipSource
from sana_train.utils.files import one_at_a_time, write_json

logger = logging.getLogger(__name__)


class FixedSource(ClipSource, Protocol):
    """A source whose clips are known by a hash: equal fingerprints, equal clips."""

    def fingerprint(self) -> str: ...


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """The JSON record ``folder/name``, or None where there is none."""
    path = folder / name
    return json.loads(path.read_text()) if path.exists() else None


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """``key: found, wanted`` for every key that differs, for an error message."""
    keys = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    return "; ".join(f"{key}: found {found.get(key)!r}, wanted {wanted.get(key)!r}" for key in keys)


@contextmanager
def staged_folder(target: Path, record_name: str, record: Mapping[str, Any]) -> Iterator[Path | None]:
    """A folder beside ``target`` to write shards into, renamed to it if the block ends without an error.

    Yields None when ``target`` is complete and of the same record. What an interrupted writer of the same
    record left is kept in the folder, so complete shards need not be written again. Processes that want
    the same folder wait for each other; of several, one writes and the others find it done.

    Raises:
        ValueError: ``target`` was made from something else.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(target.parent / f".{target.name}.lock"):
        found = read_record(target, record_name)
        if found == record:
            yield None
            return
        if found is not None:
            raise ValueError(
                f"{target} was made from something else ({differences(found, record)}); "
                "give another folder or remove this one"
            )
        if target.exists() and any(target.iterdir()):
            raise ValueError(f"{target} exists without a {record_name}; give another folder or remove it")
        scratch = target.with_name(f".{target.name}.partial")
        if scratch.exists() and read_record(scratch, record_name) != record:
            shutil.rmtree(scratch)
        scratch.mkdir(exist_ok=True)
        write_json(scratch / record_name, record)
        yield scratch
        for leftover in scratch.glob(".*"):  # scratch files of a writer that was killed
            leftover.unlink()
        if target.exists():
            target.rmdir()
        os.replace(scratch, target)


def shard_ranges(num_clips: int, clips_per_shard: int) -> list[range]:
    """Clip ids of each shard."""
    if clips_per_shard < 1:
        raise ValueError(f"clips_per_shard must be at least 1, got {clips_per_shard}")
    starts = range(0, num_clips, clips_per_shard)
    return [range(start, min(start + clips_per_shard, num_clips)) for start in starts]


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:06d}.tar"
