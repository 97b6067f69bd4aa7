"""Writing the shards of a plan: each by one process, whole or not at all, and never twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from sana_train.data.preparation.clips import Clip, clips_of
from sana_train.data.preparation.plan import Shard, Video
from sana_train.data.preparation.processes import start_work
from sana_train.data.preparation.rules import PrepareRules
from sana_train.data.preparation.sources import Reject
from sana_train.data.progress import ClipProgress
from sana_train.data.shards import inspect_clip
from sana_train.data.tars import is_whole, write_tar
from sana_train.utils.files import write_json

_NUM_PROBED, _CLIPS_OF_EACH = 4, 2
_TAR_BLOCK = 512


@dataclass(frozen=True)
class Written:
    """What became of a shard; kept beside it, also where no clip was left and there is no tar.

    Attributes:
        num_videos: it was made from.
        num_clips: in the tar.
        num_as_found: of them videos whose bytes were not touched.
        num_bytes: of the tar.
        rejects: of its videos and their clips.
    """

    num_videos: int
    num_clips: int
    num_as_found: int
    num_bytes: int
    rejects: tuple[Reject, ...]


@dataclass(frozen=True)
class Probe:
    """What a few videos cost.

    Attributes:
        num_clips: that were made for it.
        seconds_per_clip: of one process.
        bytes_per_clip: in a tar.
    """

    num_clips: int
    seconds_per_clip: float
    bytes_per_clip: float


def report_path(tar: Path) -> Path:
    """Of what became of the videos of a shard; the last file of it that is written."""
    return tar.with_suffix(".prepared.json")


def read_written(shard: Shard, folder: Path) -> Written | None:
    """What became of a shard, None if it is not finished."""
    tar = shard.tar(folder)
    try:
        record = json.loads(report_path(tar).read_text())
    except FileNotFoundError:
        return None
    if record["num_clips"] and not is_whole(tar):
        return None
    return Written(**{**record, "rejects": tuple(Reject(**each) for each in record["rejects"])})


def write_shards(shards: Sequence[Shard], folder: Path, rules: PrepareRules, num_workers: int) -> None:
    """Write ``shards`` below ``folder``, under a progress bar.

    Args:
        num_workers: processes; the bytes do not depend on it.
    """
    for shard in shards:
        for scratch in shard.tar(folder).parent.glob(".*"):  # of a writer that was killed
            scratch.unlink()
    told = start_work(shards, partial(_write, folder, rules), num_workers)
    with ClipProgress("cutting clips", sum(shard.num_clips for shard in shards)) as progress:
        for num_clips in told:
            progress.advance(num_clips)


def _write(folder: Path, rules: PrepareRules, shard: Shard, tell: Callable[[int], None]) -> None:
    """Tells how many clips of the plan are behind it; a video's last time counts those that did not come."""
    tar = shard.tar(folder)
    tar.parent.mkdir(parents=True, exist_ok=True)
    rejects: list[Reject] = []
    written: list[Clip] = []

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for clip in _clips(shard, rules, rejects, tell):
            written.append(replace(clip, members={}))
            yield clip.key, clip.members

    first = next(clips := samples(), None)
    if first is not None:
        write_tar(tar, chain([first], clips), inspect_clip)
    num_bytes = tar.stat().st_size if first is not None else 0
    num_as_found = sum(clip.is_as_found for clip in written)
    result = Written(len(shard.videos), len(written), num_as_found, num_bytes, tuple(rejects))
    write_json(report_path(tar), asdict(result))


def _clips(
    shard: Shard, rules: PrepareRules, rejects: list[Reject], tell: Callable[[int], None]
) -> Iterator[Clip]:
    for video in shard.videos:
        num_told = 0
        for clip in clips_of(video.source, video.facts.sha256, rules):
            if isinstance(clip, Reject):
                rejects.append(clip)
            else:
                yield clip
            if num_told < video.num_clips:
                num_told += 1
                tell(1)
        tell(video.num_clips - num_told)


def probe(videos: Sequence[Video], rules: PrepareRules) -> Probe | None:
    """The cost of a clip by a few videos from all over the set; None where not one gives a clip."""
    if rules.scene_threshold is not None:  # looks at whole videos, so at short ones
        videos = sorted(videos, key=lambda video: video.facts.duration_s)[
            : max(_NUM_PROBED, len(videos) // 2)
        ]
    step = max(1, len(videos) // _NUM_PROBED)
    num_clips = num_bytes = 0
    started_s = time.monotonic()
    for video in videos[::step][:_NUM_PROBED]:
        for clip in clips_of(video.source, video.facts.sha256, rules, max_clips=_CLIPS_OF_EACH):
            if isinstance(clip, Clip):
                num_clips += 1
                num_bytes += sum(_in_tar(len(data)) for data in clip.members.values())
    if not num_clips:
        return None
    return Probe(num_clips, (time.monotonic() - started_s) / num_clips, num_bytes / num_clips)


def _in_tar(num_bytes: int) -> int:
    """A header, and whole blocks."""
    return (1 - (-num_bytes // _TAR_BLOCK)) * _TAR_BLOCK
