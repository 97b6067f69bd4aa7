"""``python -m sana_train.cli.validate_data``: what is in shards, and whether a run would train on them.

SHARDS are folders or tars of captioned clips, or folders that precompute wrote. The overrides are those of
the run; its data.train.frames, height_px and width_px, or its buckets, are what clips are held against, by
the reader that training has, so that a clip is rejected here for the reason that would make it a hole there;
its frames are decoded as far as there. Without SHARDS the run's own data.train and data.heldout are taken.

Told are counts, reasons with their first keys, ranges, sizes, repeated keys, captions and contents. The
exit code is 1 if training would fail: a shard cannot be read, or no sample of a set can be used.

  --quick          read headers and decode nothing: damage behind a header is not noticed
  --contact-sheet  a PNG of clips drawn at random, a row of frames each, with key and caption
  --json           the same and more: every rejected and every repeated sample

examples:
  python -m sana_train.cli.validate_data clips/train scale=2b --contact-sheet sheet.png
  python -m sana_train.cli.validate_data scale=2b data.train.path=clips/a data.heldout.path=clips/b
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sana_train.cli.arguments import count, positive
from sana_train.cli.config import RunConfig
from sana_train.cli.load import load
from sana_train.cli.preflight import check_overrides, leave_out_parts
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.cli.validate_kinds import Kind, run_kinds
from sana_train.cli.validate_report import in_several_sets, report, summarise, verdict
from sana_train.data.latent_clips import LatentClips
from sana_train.data.latents import SPEC_NAME
from sana_train.data.locations import Shard, list_shards
from sana_train.data.progress import ClipProgress
from sana_train.data.validate import CheckedShards, check_clips, check_latents
from sana_train.data.video import BadClip
from sana_train.evaluation.contact_sheet import contact_sheet, frame_row
from sana_train.utils.files import write_json

_FRAMES_SHOWN = 5


@dataclass(frozen=True)
class ShardSet:
    """Tars that a run reads as one.

    Attributes:
        name: their folder, or the key of the configuration that names it.
        tars: in order.
        kind: how a run reads the clips; None for latents.
    """

    name: str
    tars: list[Shard]
    kind: Kind | None

    @property
    def expected(self) -> str:
        if self.kind is None:
            return "latents, held against each other; a run holds them against its autoencoder, too"
        return self.kind.expected


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.validate_data", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("words", nargs="*", metavar="SHARDS or overrides", help="in any order")
    top.add_argument("--quick", action="store_true", help="headers only")
    top.add_argument("--workers", type=count, default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes, 0 for this one (%(default)s, a process for each core)")  # fmt: skip
    top.add_argument("--contact-sheet", type=Path, metavar="PNG", help="picture to write")
    top.add_argument("--num-clips", type=positive, default=12, metavar="N", help="on it (%(default)s)")
    top.add_argument("--seed", type=int, default=0, help="that draws them (%(default)s)")
    top.add_argument("--json", type=Path, metavar="FILE", help="record to write")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    with readable_errors(), exit_when_preempted(), _without_each_hole():
        if not validate(given):
            sys.exit(1)


def validate(given: argparse.Namespace) -> bool:
    """Whether training would start on what was given."""
    paths, overrides = split_words(given.words)
    sets = given_sets(paths, overrides) if paths else run_sets(_config(overrides))
    if given.contact_sheet is not None and not any(each.kind for each in sets):
        raise ValueError("--contact-sheet: latents have no pictures; give the clips that they were made of")
    checked = {each.name: _check(each, given) for each in sets}
    starts = [_start(each, checked[each.name]) for each in sets]
    summaries = [
        summarise(each.name, each.expected, checked[each.name], failures)
        for each, (failures, _) in zip(sets, starts, strict=True)
    ]
    shared = in_several_sets(checked)
    for summary, (_, told) in zip(summaries, starts, strict=True):
        sys.stdout.write("\n".join([report(summary), *told]) + "\n")
    if given.contact_sheet is not None:
        sys.stdout.write(_draw(sets, checked, given))
    sys.stdout.write(verdict(summaries, shared))
    would_start = not any(summary["failures"] for summary in summaries)
    if given.json is not None:
        record = {"decoded": not given.quick, "would_start": would_start, "sets": summaries}
        write_json(given.json, {**record, "contents_in_several_sets": shared})
    return would_start


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Paths that exist, and overrides.

    Raises:
        ValueError: a word that is neither.
    """
    paths = [Path(word) for word in words if Path(word).exists()]
    others = [word for word in words if not Path(word).exists()]
    for word in others:
        if "=" not in word and not word.startswith("~"):
            raise ValueError(f"{word}: expected a folder of *.tar shards, a tar or an override, found none")
    return paths, others


def given_sets(paths: Sequence[Path], overrides: Sequence[str]) -> list[ShardSet]:
    """The shards at ``paths``, a set for each folder; of latents the whole folder, as a run reads it."""
    folders: dict[Path, dict[Shard, None]] = {}
    for path in paths:
        folder = path.parent if path.is_file() else path
        tars = list_shards(folder if _holds_latents(folder) else path)
        folders.setdefault(folder, {}).update(dict.fromkeys(tars))
    kind = None
    if not all(map(_holds_latents, folders)):
        is_chosen = any(override.startswith("data=") for override in overrides)
        config = _config(overrides if is_chosen else ["data=shards", *overrides])
        kind = replace(run_kinds(config, "train")[0], start=None)  # these are not all that it names
    return [
        ShardSet(str(folder), list(tars), None if _holds_latents(folder) else kind)
        for folder, tars in folders.items()
    ]


def _holds_latents(folder: Path) -> bool:
    return (folder / SPEC_NAME).exists()


def run_sets(config: RunConfig) -> list[ShardSet]:
    """``data.train`` and ``data.heldout`` of a run."""
    return [
        ShardSet(f"{each.key} {each.path}", list_shards(each.path, each.cache), each)
        for split in ("train", "heldout")
        for each in run_kinds(config, split)
    ]


def _config(overrides: Sequence[str]) -> RunConfig:
    return load(check_overrides(leave_out_parts(overrides)))


def _check(each: ShardSet, given: argparse.Namespace) -> CheckedShards:
    if each.kind is None:
        return check_latents(each.tars, given.workers)
    return check_clips(each.tars, each.kind.open_clips, given.workers, decode=not given.quick)


def _start(each: ShardSet, checked: CheckedShards) -> tuple[list[str], list[str]]:
    """Why training would not start on a set; where it would, lines of what it starts on."""
    failures: list[str] = []
    told: list[str] = []
    if checked.unreadable:
        failures.append(f"{len(checked.unreadable)} of {len(each.tars)} shards cannot be read")
    if not checked.num_usable:
        remedy = "mend the clips and encode them again"
        if each.kind is not None:
            remedy = "mend them, or set data.*.frames, height_px and width_px to what the clips have"
        if each.kind is not None and each.kind.start is not None:
            remedy = "mend them, or choose other data.train.resolutions and frames"
        failures.append(f"none of the {len(checked.samples)} samples can be used; {remedy}")
    if not failures:
        try:
            if each.kind is None:
                LatentClips(each.name, {})
            elif each.kind.start is not None:
                told = [each.kind.start(), ""]
        except ValueError as error:  # a shard was lost, or buckets and images do not go together, say
            failures.append(str(error))
    return failures, told


def _draw(sets: Sequence[ShardSet], checked: Mapping[str, CheckedShards], given: argparse.Namespace) -> str:
    """Write the contact sheet; what to say of it."""
    clips = {
        each.name: each.kind.open_clips(checked[each.name].tars)
        for each in sets
        if each.kind is not None and checked[each.name].tars
    }
    usable = [
        (name, index)
        for name in clips
        for index, sample in enumerate(checked[name].samples)
        if sample.problem is None
    ]
    order = random.Random(given.seed).sample(usable, len(usable))
    pictures: dict[tuple[str, int], tuple[str, str, np.ndarray]] = {}
    with ClipProgress("drawing clips", min(given.num_clips, len(order))) as progress:
        for name, index in order:
            if len(pictures) == given.num_clips:
                break
            try:
                video, record = clips[name].decode(index)
            except BadClip:  # --quick has not looked behind its header
                continue
            sample = checked[name].samples[index]
            title = " ".join([name, sample.shard, sample.key][len(clips) == 1 :])
            pictures[name, index] = (title, record["caption"], frame_row(video, _FRAMES_SHOWN))
            progress.advance(1)
    if not pictures:
        return f"no picture at {given.contact_sheet}: there is no clip to draw\n\n"
    contact_sheet(given.contact_sheet, [pictures[place] for place in usable if place in pictures])
    return f"{len(pictures)} of {len(usable)} clips are drawn in {given.contact_sheet}\n\n"


@contextmanager
def _without_each_hole() -> Iterator[None]:
    """The report tells of holes and indices, once."""
    logger = logging.getLogger("sana_train.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


if __name__ == "__main__":
    main()
