"""Folders of shards that are written once, can be continued, and appear only when complete."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
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


def difference_table(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The same as indented lines, two for every key that differs; nested keys are dotted."""
    ours, theirs = _flat(wanted), _flat(found)
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    width = max(map(len, keys), default=0)
    return "\n".join(
        f"  {name:<{width}}  {kind:<6}  {values.get(key, 'nothing')}"
        for key in keys
        for name, kind, values in ((key, "found", theirs), ("", "wanted", ours))
    )


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


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
        scratch = partial_folder(target)
        if scratch.exists() and read_record(scratch, record_name) != record:
            shutil.rmtree(scratch)
        scratch.mkdir(exist_ok=True)
        write_json(scratch / record_name, record)
        yield scratch
        _publish(scratch, target)


def partial_folder(target: Path) -> Path:
    """Where the shards of ``target`` lie until it is complete."""
    return target.with_name(f".{target.name}.partial")


def begin_shared_folder(target: Path, record_name: str, record: Mapping[str, Any]) -> Path:
    """The folder to write the shards of ``target`` into: ``target`` itself if it is complete.

    Unlike in ``staged_folder`` any number of processes may write at once, each its own shards, and
    ``publish_if_complete`` ends the work. An unfinished folder of something else may hold days of it, so it
    is an error here.

    Raises:
        ValueError: ``target``, or what was begun of it, was made from something else.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(target.parent / f".{target.name}.lock"):
        for folder in (target, scratch := partial_folder(target)):
            found = read_record(folder, record_name)
            if found == record:
                return folder
            if found is not None:
                raise ValueError(
                    f"{folder} was made from something else:\n{difference_table(found, record)}\n"
                    "Remove it, or write to another folder"
                )
        if target.exists() and any(target.iterdir()):
            raise ValueError(f"{target} exists without a {record_name}; give another folder or remove it")
        scratch.mkdir(exist_ok=True)
        write_json(scratch / record_name, record)
        return scratch


def publish_if_complete(target: Path, is_complete: Callable[[Path], bool]) -> bool:
    """Rename the folder of ``begin_shared_folder`` to ``target`` if all of it is there; whether it is now."""
    with one_at_a_time(target.parent / f".{target.name}.lock"):
        scratch = partial_folder(target)
        if scratch.exists() and is_complete(scratch):
            _publish(scratch, target)
        return not scratch.exists()


def _publish(scratch: Path, target: Path) -> None:
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
