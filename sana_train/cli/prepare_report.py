"""What ``cli.prepare_data`` tells before and after its work, in at most 100 columns, and keeps as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sana_train.data.preparation.plan import SPLITS, Plan
from sana_train.data.preparation.rules import PrepareRules
from sana_train.data.preparation.sources import Reject
from sana_train.data.preparation.work import Written
from sana_train.data.video import kind_of

_WIDTH = 100
_SHOWN = 3  # examples of each reason
_COLUMNS = {"num_videos": 10, "num_clips": 10, "num_clips_as_found": 11, "num_shards": 10}


def plan_text(plan: Plan, rejects: Sequence[Reject], rules: PrepareRules) -> str:
    """What each split will have by the videos' headers, and what is out already."""
    rate = "each video's own fps" if rules.fps is None else f"{rules.fps:g} fps"
    lines = [
        f"clips of {rules.frames} frames, {rules.height_px}x{rules.width_px} px, {rate}, cut={rules.cut}"
    ]
    for split in SPLITS:
        shards = plan.of(split)
        num_videos, num_clips = sum(len(s.videos) for s in shards), sum(s.num_clips for s in shards)
        lines.append(
            f"  {split:<8}{num_videos:>8,} videos, at most {num_clips:,} clips in {len(shards):,} shards"
        )
    if not plan.of("heldout") and rules.heldout_share and plan.of("train"):
        lines += _wrapped(
            f"no video fell into the held-out split at heldout_share={rules.heldout_share:g}: raise it, "
            "or try another heldout_seed; a run needs held-out clips, too"
        )
    return "\n".join([*lines, *reject_lines(rejects)])


def report(
    plan: Plan, written: Mapping[tuple[str, int], Written], unusable: Sequence[Reject]
) -> dict[str, Any]:
    """What is kept as report.json; of plain values, and a pure function of videos and rules."""
    splits = {}
    for split in SPLITS:
        parts = [written[shard.split, shard.number] for shard in plan.of(split)]
        splits[split] = {
            "num_videos": sum(part.num_videos for part in parts),
            "num_clips": sum(part.num_clips for part in parts),
            "num_clips_as_found": sum(part.num_as_found for part in parts),
            "num_shards": sum(part.num_clips > 0 for part in parts),
            "num_bytes": sum(part.num_bytes for part in parts),
        }
    late = [each for key in sorted(written) for each in written[key].rejects]
    rejects = [*unusable, *plan.rejects, *late]
    return {"splits": splits, "rejects": [asdict(each) for each in rejects]}


def summary(told: Mapping[str, Any], out: Path, num_new: int, took_s: float) -> str:
    """What there is now."""
    rate = f", {num_new / took_s:.2f} clips/s" if num_new else ""
    lines = [f"cut {num_new:,} clips in {took_s:.0f} s{rate}, to {out}"]
    lines.append(f"  {'':<8}{'videos':>10}{'clips':>10}{'unchanged':>11}{'shards':>10}{'size':>14}")
    for split, part in told["splits"].items():
        counts = "".join(f"{part[name]:>{width},}" for name, width in _COLUMNS.items())
        lines.append(f"  {split:<8}{counts}{size(part['num_bytes']):>14}")
    return "\n".join([*lines, *reject_lines([Reject(**each) for each in told["rejects"]])])


def reject_lines(rejects: Sequence[Reject]) -> list[str]:
    """Each kind of reason with its count and the first that it was said of."""
    if not rejects:
        return ["nothing rejected"]
    kinds: dict[str, list[Reject]] = {}
    for each in rejects:
        kinds.setdefault(kind_of(each.reason), []).append(each)
    num_clips = sum(each.start_s is not None for each in rejects)
    lines = [f"rejected: {len(rejects) - num_clips:,} videos or rows, {num_clips:,} parts of videos"]
    for kind, group in sorted(kinds.items(), key=lambda item: -len(item[1])):
        lines += _wrapped(f"{len(group):>6,}  {kind}", "  ", " " * 10)
        for each in group[:_SHOWN]:
            detail = each.reason.removeprefix(kind).removeprefix(":").strip()
            where = each.source if each.start_s is None else f"{each.source} at {each.start_s:g} s"
            lines += _wrapped(f"{where}: {detail}" if detail else where, " " * 12)
        if len(group) > _SHOWN:
            lines.append(f"{'':12}and {len(group) - _SHOWN:,} more")
    return lines


def size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"


def duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} s"


def failure(why: str) -> str:
    """The last line where there is nothing to train on."""
    return "\n".join(_wrapped(f"nothing usable: {why}"))


def _wrapped(text: str, indent: str = "", further: str | None = None) -> list[str]:
    further = indent + "  " if further is None else further
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=further, break_on_hyphens=False
    )
