"""``python -m sana_train.cli.prepare_data``: videos with captions to shards of clips, before training.

VIDEOS is a folder of videos, at any depth, or NVlabs' SANA-Video format: a zip, or a folder of zips, each
with key.mp4 and key.json inside and <zip>_<name>.json beside it. Captions of a folder are rows of a file
(--captions F.jsonl, F.csv or F.json), or lie beside each video (name.txt, name.json).

OUT gets train/ and heldout/ with WebDataset shards (key.mp4, key.json with the caption) and their index,
report.json with every rejected video and its reason, and prepared.json with the rules. KEY=VALUE changes a
rule of conf/prepare.yaml: size, fps, length and cutting of clips, captions, motion, quality, split.

The same command goes on after whatever stopped it and gives the same bytes with any number of workers. A
folder made by other rules or from other videos is refused. The plan comes first, with GB and time by a
probe of a few videos. The exit code is 1 if nothing usable comes out.

  --dry-run  the plan alone: videos are read, a few are cut, nothing is kept

examples:
  python -m sana_train.cli.prepare_data videos clips --captions videos/captions.jsonl
  python -m sana_train.cli.prepare_data zips clips caption_keys=[_Qwen2.5-VL,prompt] motion_key=_unimatch
  python -m sana_train.cli.prepare_data videos clips height_px=704 width_px=1280 scene_threshold=27
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sana_train.cli.arguments import count
from sana_train.cli.load import CONF_DIR
from sana_train.cli.prepare_report import duration, failure, plan_text, report, size, summary
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.cli.schema import ConfigError, check
from sana_train.data.preparation.captions import read_sources
from sana_train.data.preparation.plan import Plan, Shard, make_plan, summary_of
from sana_train.data.preparation.rules import PrepareRules
from sana_train.data.preparation.scenes import require_scene_detector
from sana_train.data.preparation.sources import Reject
from sana_train.data.preparation.survey import survey
from sana_train.data.preparation.work import Written, probe, read_written, write_shards
from sana_train.data.staging import (
    begin_shared_folder,
    difference_table,
    partial_folder,
    publish_if_complete,
    read_record,
)
from sana_train.data.video import decoder_version
from sana_train.utils.files import one_at_a_time, write_json

RECORD_NAME = "prepared.json"
REPORT_NAME = "report.json"
_VERSION = 1  # raised when equal rules come to mean other clips


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.prepare_data", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of videos, zip, or folder of zips")
    top.add_argument("out", type=Path, metavar="OUT", help="folder for the shards, not there yet")
    top.add_argument("rules", nargs="*", metavar="KEY=VALUE", help="of conf/prepare.yaml")
    top.add_argument("--captions", type=Path, metavar="FILE", help="rows of a jsonl, csv or json")
    top.add_argument(
        "--rules-file", type=Path, metavar="YAML", help="keys of conf/prepare.yaml; KEY=VALUE wins"
    )
    top.add_argument("--num-workers", type=count, default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes, 0 for this one (%(default)s, a process for each core)")  # fmt: skip
    top.add_argument("--dry-run", action="store_true", help="counts, sizes, GB, time; write nothing")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    torch.set_num_threads(1)  # parallelism is over videos
    with readable_errors(), exit_when_preempted():
        rules = read_rules(given.rules, given.rules_file)
        if not prepare(given, rules):
            sys.exit(1)


def read_rules(words: Sequence[str], file: Path | None = None) -> PrepareRules:
    """``conf/prepare.yaml``, changed by a YAML of the same keys, then by ``KEY=VALUE``.

    Raises:
        ConfigError: an unknown key, a mistyped value, or a number out of its range.
    """
    for word in words:
        if "=" not in word:
            raise ConfigError([f"{word}: expected KEY=VALUE with a key of conf/prepare.yaml"])
    try:
        layers = [OmegaConf.load(each) for each in (CONF_DIR / "prepare.yaml", *([file] if file else []))]
        merged = OmegaConf.merge(*layers, OmegaConf.from_dotlist(list(words)))
        plain: Any = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([str(error).splitlines()[0]]) from error
    check(plain, PrepareRules)
    try:
        return PrepareRules(**plain)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def prepare(given: argparse.Namespace, rules: PrepareRules) -> bool:
    """The plan, then, unless it is a dry run, the work; whether there is something to train on."""
    detector = None if rules.scene_threshold is None else require_scene_detector()
    side_keys = [key for key in (*rules.caption_keys, rules.motion_key) if key is not None]
    sources, unusable = read_sources(given.videos, given.captions, rules.video_keys, side_keys)
    _say(f"{given.videos}: {len(sources):,} videos")
    if given.dry_run:
        found = survey(sources, None, given.num_workers)
        return _plan(make_plan(sources, found, rules), unusable, given, rules, None)
    given.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    out = given.out.absolute()
    with one_at_a_time(out.with_name(f".{out.name}.prepare.lock")):
        _require_same_rules(out, rules)
        cache = out.with_name(f".{out.name}.survey.jsonl")
        found = survey(sources, cache, given.num_workers)
        record = {
            "version": _VERSION,
            "rules": rules.record(),
            "videos": summary_of(sources, found),
            "made_with": {"decoder": decoder_version(), "scenes": detector, "torch": torch.__version__},
        }
        plan = make_plan(sources, found, rules)
        folder = begin_shared_folder(out, RECORD_NAME, record)
        would_train = _plan(plan, unusable, given, rules, folder)
        if would_train:
            would_train = _work(plan, unusable, given, rules, folder)
        if not would_train and folder == partial_folder(out):
            shutil.rmtree(folder)  # so that other rules may be tried
        cache.unlink(missing_ok=True)
    return would_train


def _require_same_rules(out: Path, rules: PrepareRules) -> None:
    """Before every byte of every video is read, which the whole record takes.

    Raises:
        ValueError: ``out``, or what was begun of it, follows other rules.
    """
    for folder in (out, partial_folder(out)):
        found = read_record(folder, RECORD_NAME)
        if found is not None and found["rules"] != rules.record():
            raise ValueError(
                f"{folder} was made by other rules:\n{difference_table(found['rules'], rules.record())}\n"
                "Remove it, or write to another folder"
            )


def _plan(
    plan: Plan,
    unusable: Sequence[Reject],
    given: argparse.Namespace,
    rules: PrepareRules,
    folder: Path | None,
) -> bool:
    """Say what will be done; whether there is anything.

    Raises:
        ValueError: the disk is too small for it.
    """
    left = [shard for shard in plan.shards if folder is None or read_written(shard, folder) is None]
    videos = [video for shard in left for video in shard.videos]
    _say(plan_text(plan, [*unusable, *plan.rejects], rules))
    if not plan.of("train"):
        why = "not one video can be used for training"
        if not given.dry_run:
            rejects = [asdict(each) for each in (*unusable, *plan.rejects)]
            why += f"; {_keep_rejects(given.out, rejects)}"
        _say(failure(why))
        return False
    if len(left) < len(plan.shards):
        _say(f"{len(plan.shards) - len(left)} of {len(plan.shards)} shards are done already")
    if videos:
        _say(_cost(left, given, rules))
    if given.dry_run:
        _say("nothing was written")
    return True


def _cost(left: Sequence[Shard], given: argparse.Namespace, rules: PrepareRules) -> str:
    cost = probe([video for shard in left for video in shard.videos], rules)
    if cost is None:
        return "GB and time: unknown, a probe of a few videos gave no clip"
    num_clips = sum(shard.num_clips for shard in left)
    num_processes = max(1, min(given.num_workers, len(left)))
    took_s = max(num_clips / num_processes, max(s.num_clips for s in left)) * cost.seconds_per_clip
    needed = num_clips * cost.bytes_per_clip
    parent = next(each for each in given.out.absolute().parents if each.exists())
    free = shutil.disk_usage(parent).free
    line = (
        f"about {size(needed)} and {duration(took_s)} for at most {num_clips:,} clips in {num_processes} "
        f"processes, by a probe of {cost.num_clips}; {size(free)} are free"
    )
    if needed > free:
        raise ValueError(
            f"{line}\ntoo little space for {given.out}; give another folder, a larger crf, or fewer videos"
        )
    return line


def _work(
    plan: Plan, unusable: Sequence[Reject], given: argparse.Namespace, rules: PrepareRules, folder: Path
) -> bool:
    """Write what is missing and publish it; whether there is a clip to train on."""
    started_s = time.monotonic()
    left = [shard for shard in plan.shards if read_written(shard, folder) is None]
    if left:
        write_shards(left, folder, rules, given.num_workers)
    written = {(s.split, s.number): _required(read_written(s, folder)) for s in plan.shards}
    told = report(plan, written, unusable)
    took_s = time.monotonic() - started_s
    num_new = sum(written[shard.split, shard.number].num_clips for shard in left)
    if not told["splits"]["train"]["num_clips"]:
        _say(summary(told, given.out, num_new, took_s))
        _say(failure(f"not one clip for training came out; {_keep_rejects(given.out, told['rejects'])}"))
        return False
    if not (folder / REPORT_NAME).exists():
        write_json(folder / REPORT_NAME, told)
    publish_if_complete(given.out.absolute(), lambda scratch: (scratch / REPORT_NAME).exists())
    _say(summary(told, given.out, num_new, took_s))
    return True


def _keep_rejects(out: Path, rejects: Sequence[Mapping[str, Any]]) -> str:
    """Where there will be no folder for a report; what to say of it."""
    path = out.with_name(f"{out.name}.rejects.json")
    write_json(path, {"rejects": list(rejects)})
    return f"every reason is in {path}"


def _required(written: Written | None) -> Written:
    assert written is not None, "a shard that was written cannot be read"
    return written


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()  # in a log, before hours of work


if __name__ == "__main__":
    main()
