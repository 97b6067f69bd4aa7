"""A first look at every video: the hash of its bytes and its header, kept so that none is read twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from sana_train.data.preparation.decoding import read_header
from sana_train.data.preparation.processes import start_work
from sana_train.data.preparation.sources import Source
from sana_train.data.progress import ClipProgress
from sana_train.data.video import BadClip

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Facts:
    """What a video is, whatever the rules are.

    Attributes:
        sha256: of its bytes; empty where they cannot be read.
        num_bytes: of the video.
        problem: why it cannot be used; what follows is 0 then.
        height_px: as displayed.
        width_px: as displayed.
        duration_s: from its first frame's start to its last one's end.
        fps: on average.
        is_steady: whether the frames come at equal distances.
    """

    sha256: str
    num_bytes: int
    problem: str | None = None
    height_px: int = 0
    width_px: int = 0
    duration_s: float = 0.0
    fps: float = 0.0
    is_steady: bool = False


def look_at(source: Source) -> Facts:
    """Read a video once from end to end; only its first frame is decoded."""
    facts = Facts("", 0)
    try:
        with source.open() as file:
            digest = hashlib.sha256()
            while block := file.read(_BLOCK):
                digest.update(block)
            facts = replace(facts, sha256=digest.hexdigest(), num_bytes=file.tell())
            file.seek(0)
            header = read_header(file)
    except (BadClip, OSError) as error:
        reason = str(error) if isinstance(error, BadClip) else f"the file cannot be read ({error.strerror})"
        return replace(facts, problem=reason)
    return replace(
        facts,
        height_px=header.height_px,
        width_px=header.width_px,
        duration_s=float(header.timeline.time_s(len(header.timeline.pts))),
        fps=float(header.rate),
        is_steady=header.timeline.is_steady,
    )


def survey(sources: Sequence[Source], cache: Path | None, num_workers: int) -> list[Facts]:
    """The facts of every source, in order, under a progress bar.

    Args:
        cache: a file of one line a video, added to as each is done; lines of files that have changed since,
            by size or time, are not used, nor is a line that was cut. None keeps nothing.
    """
    known = _read(cache) if cache is not None else {}
    stamps = [_stamp(source) for source in sources]
    found = [known.get(stamp) for stamp in stamps]
    missing = [number for number, facts in enumerate(found) if facts is None]
    looks = start_work(missing, partial(_look, sources), num_workers)
    with ExitStack() as stack:
        file = None
        if cache is not None and missing:
            file = stack.enter_context(cache.open("a", encoding="utf-8"))
            file.write("\n")  # behind a line that was cut
        progress = stack.enter_context(ClipProgress("reading videos", len(missing)))
        for number, facts in looks:
            found[number] = facts
            if file is not None:
                file.write(json.dumps({"stamp": stamps[number], **asdict(facts)}) + "\n")
                file.flush()
            progress.advance(1)
    return [facts for facts in found if facts is not None]


def _look(sources: Sequence[Source], number: int, tell: Callable[[tuple[int, Facts]], None]) -> None:
    tell((number, look_at(sources[number])))


def _stamp(source: Source) -> str:
    try:
        status = source.path.stat()
    except OSError:
        return json.dumps([source.name, None])
    return json.dumps([source.name, str(source.path), source.member, status.st_size, status.st_mtime_ns])


def _read(cache: Path) -> dict[str, Facts]:
    known: dict[str, Facts] = {}
    if not cache.exists():
        return known
    for line in cache.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            known[record.pop("stamp")] = Facts(**record)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # cut by whatever stopped its writer; the video is looked at again
    return known
