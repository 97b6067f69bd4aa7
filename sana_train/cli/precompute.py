"""``python -m sana_train.cli.precompute``: video shards to latent shards, once, before training.

Overrides are those of the run that will train; it reads the result with latents.mode=precomputed.
Clips are data.train and data.heldout, captions go through `text`, latents to paths.latents, as
<split>/<autoencoder>/: one shard for each clip shard, with its name, its keys and its order.
Several autoencoders share one decoding of the clips, so their folders are paired clip by clip; the
plan says which frames both code.

All visible GPUs work, a process each; without one, the CPU. A SLURM array shares the shards: each
task takes every N-th, and whichever finishes the last shard publishes the folder. The same command
goes on after an interruption: a finished shard is not encoded again, once the fingerprint of its
folder was found to be this command's. GB and hours are told before anything is encoded.

  --dry-run    the plan alone: nothing is encoded. Clip shards without an index get one beside them,
               and data=world renders its clips if they are not there yet
  --measure N  nothing is kept: clips/s of the bare autoencoders on N clips that lie on the device,
               of the whole pipeline from decoded clips in host memory, and of decoding
  --prompts F  no clips: each prompt of F (one a line) through text=ltx2_connectors, for the refiner

examples:
  python -m sana_train.cli.precompute scale=2b data.train.path=clips/a data.heldout.path=clips/b
  python -m sana_train.cli.precompute scale=2b --autoencoder ltx2_2b --autoencoder dcae_v_2b
  sbatch --array=0-15 slurm/precompute.sbatch scale=2b
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sana_train.cli.arguments import positive
from sana_train.cli.config import RunConfig
from sana_train.cli.load import load
from sana_train.cli.precompute_job import (
    Encoders,
    Split,
    alone,
    begin,
    build,
    devices,
    publish,
    read_splits,
    run_everywhere,
    run_here,
    work_left,
)
from sana_train.cli.precompute_measure import measure
from sana_train.cli.precompute_plan import hours, not_written, sizes, summary
from sana_train.cli.precompute_prompts import cache_prompts
from sana_train.cli.preflight import check_overrides, chosen_option, leave_out_parts
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.cli.schema import TARGET
from sana_train.cli.vae_choice import Choice, label_of, read_choices
from sana_train.cli.wanted import MissingWeightsError, find_weights
from sana_train.data.progress import ClipProgress

_SPLITS = ("train", "heldout")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.precompute", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("overrides", nargs="*", help="of train.py, before the options: scale=2b")
    top.add_argument(
        "--autoencoder",
        nargs="+",
        action="append",
        metavar=("NAME_OR_YAML", "KEY=VALUE"),
        help="once for each, as in cli.vae_table; left out: the run's own",
    )
    top.add_argument("--split", choices=_SPLITS, help="one of them alone; left out: both")
    top.add_argument(
        "--shards",
        type=_part,
        metavar="I/N",
        help="shards I, I + N, I + 2N ..., I from 0; left out: SLURM_ARRAY_TASK_ID of "
        "SLURM_ARRAY_TASK_COUNT where they are set, else all",
    )
    mode = top.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="sizes, pairs, GB, hours; encode nothing")
    mode.add_argument("--measure", type=positive, metavar="N", help="throughput on N clips; keep nothing")
    mode.add_argument("--prompts", type=Path, metavar="FILE", help="cache what the refiner reads of prompts")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    try:
        with readable_errors(), exit_when_preempted():
            _run(given)
    except torch.OutOfMemoryError as error:
        sys.exit(f"the device is too small ({error}); try a smaller latents.batch_size")


def _run(given: argparse.Namespace) -> None:
    overrides = leave_out_parts(given.overrides)
    config = load(check_overrides(overrides))
    if config.text is None or config.latents is None:
        raise ValueError("precompute needs the sections `text` and `latents`; choose text=<option>")
    if given.prompts is not None:
        _require([], _missing_text(config))
        sys.stdout.write(
            cache_prompts(_local_text(config), given.prompts, Path(config.paths.latents), devices()[0])
        )
        return
    if given.autoencoder is None:
        choices = [_own_choice(config, chosen_option("autoencoder", overrides))]
    else:
        choices = read_choices(given.autoencoder, config.paths)
    if given.measure is not None:
        _require(_missing_weights(choices, may_be_random=True), _missing_text(config))
        split = read_splits(config, given.split or "train", (0, 1))[0]
        encoders = build(choices, _local_text(config), devices()[0])
        sys.stdout.write(measure(encoders, split, config.latents, given.measure, devices()[0]))
        return
    part = given.shards or slurm_part(os.environ)
    names = [given.split] if given.split else _SPLITS
    splits = [split for name in names for split in read_splits(config, name, part)]
    precompute(config, choices, splits, given.dry_run)


def precompute(config: RunConfig, choices: Sequence[Choice], splits: Sequence[Split], dry_run: bool) -> None:
    """The plan, then, unless it is a dry run, the work and a summary."""
    assert config.latents is not None and config.text is not None
    specs = {choice.label: choice.skeleton().spec for choice in choices}
    sys.stdout.write(sizes(specs, splits, config.latents.dtype))
    missing, missing_text = _missing_weights(choices), _missing_text(config)
    if dry_run and (missing or missing_text):
        sys.stdout.write(f"hours: unknown without the weights of {'; '.join([*missing, *missing_text])}\n")
        return
    _require(missing, missing_text)
    encoders = build(choices, _local_text(config), devices()[0])
    if dry_run:
        work = not_written(splits, list(specs))
        sys.stdout.write(hours(encoders, work, config.latents, devices()) + "\nnothing was encoded\n")
        return
    with alone(splits):
        num_clips, took_s = _encode(config, choices, splits, encoders)
        published = publish(splits, list(specs))
    sys.stdout.write(summary(splits, published, num_clips, took_s))


def _encode(
    config: RunConfig, choices: Sequence[Choice], splits: Sequence[Split], encoders: Encoders
) -> tuple[int, float]:
    """Encode what is missing of this task's shards: how many clips, in how many seconds."""
    assert config.latents is not None
    folders = begin(splits, encoders, config.latents.dtype)
    work = [(split, work_left(split, folders)) for split in splits]
    num_clips = sum(len(shard.clips) for _, shards in work for shard in shards)
    num_left, num_mine = sum(len(shards) for _, shards in work), sum(len(split.mine) for split in splits)
    sys.stdout.write(f"{num_mine - num_left} of {num_mine} shards are done already\n")
    if not num_clips:
        return 0, 0.0
    places = devices()
    sys.stdout.write(hours(encoders, work, config.latents, places) + "\n")
    sys.stdout.flush()  # in a log, before hours of work
    started_s = time.monotonic()
    with ClipProgress("encoding clips", num_clips) as progress:
        if len(places) == 1:
            run_here(encoders, places[0], work, config.latents, progress.advance)
        else:
            encoders.leave()  # each process has its own
            run_everywhere(choices, _local_text(config), places, work, config.latents, progress.advance)
    return num_clips, time.monotonic() - started_s


def slurm_part(environment: Mapping[str, str]) -> tuple[int, int]:
    """This task's (I, N) of a SLURM array; (0, 1) outside of one.

    Raises:
        ValueError: an array with gaps, whose tasks cannot be counted.
    """
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    number, count, first, step = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", 0), ("COUNT", 1), ("MIN", 0), ("STEP", 1))
    )
    index, rest = divmod(number - first, step)
    if rest or index >= count:
        raise ValueError(
            f"task {number} of a SLURM array of {count} tasks from {first} in steps of {step}: the array has "
            "gaps; give it without them, or --shards I/N to each task"
        )
    return index, count


def _own_choice(config: RunConfig, option: str | None) -> Choice:
    """The run's autoencoder, called as ``--autoencoder`` would call it, so that both have one folder."""
    node = config.autoencoder
    if node is None:
        raise ValueError("the configuration has no autoencoder; name some with --autoencoder")
    name = label_of(option or node[TARGET].split(".")[-2])
    wanted = node.get("weights")
    found = None if wanted is None else find_weights(wanted, Path(config.paths.models))
    return Choice(name, name, (), node, wanted, found)


def _missing_text(config: RunConfig) -> list[str]:
    wanted = (config.text or {}).get("weights")
    return [f"text: {wanted}"] if wanted and not find_weights(wanted, Path(config.paths.models)) else []


def _local_text(config: RunConfig) -> dict[str, Any]:
    """The text encoder's node with its weights as the path they were found at."""
    assert config.text is not None
    wanted = config.text.get("weights")
    found = find_weights(wanted, Path(config.paths.models)) if wanted else None
    return {**config.text, "weights": str(found)} if found else config.text


def _missing_weights(choices: Sequence[Choice], may_be_random: bool = False) -> list[str]:
    return [
        f"{choice.label}: {choice.wanted or 'weights=null, random ones'}"
        for choice in choices
        if not (choice.found or (may_be_random and choice.wanted is None))
    ]


def _require(autoencoders: Sequence[str], text: Sequence[str]) -> None:
    if not (autoencoders or text):
        return
    ways = ["text.weights=/path/to/it"] if text else []
    if autoencoders:
        ways.append(
            "autoencoder.weights=/path/to/it, or weights=/path/to/it behind a name that --autoencoder gives "
            "(random ones serve --measure only)"
        )
    raise MissingWeightsError(
        f"no weights on this machine for {'; '.join([*autoencoders, *text])}. `python -m "
        "sana_train.cli.weights` takes the same overrides and says where they are looked for; give "
        + " and ".join(ways)
    )


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, such as 0/16, got {text}")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    main()
