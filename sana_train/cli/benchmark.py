"""``python -m sana_train.cli.benchmark``: what steps of the configured DiT cost on this machine.

Rows, each measured in turns with those beside it, by CUDA events, medians over rounds:

train      forward, backward and fused AdamW (float32 weights, bf16 autocast, no clipping) for each of
           model.kernels, each way of recomputing (trainer.recompute) and each batch
optimiser  what each keeps and what its step alone takes
fsdp2      the same training step on a mesh of one device, beside the plain one: its overhead
breakdown  where a training step's time goes, kernel by kernel (on a GPU)
denoise    one evaluation with guidance, captions prepared, bf16 weights
frames     one evaluation against the length of the clip, beside softmax attention of the same width

OUT/results.json is written row by row: the same command goes on where an earlier one ended, and with other
--parts or --batch it adds to it. OUT/table.md has ms, the share of the matmul ceiling measured in this run,
MFU of the chip's data-sheet peak and memory; OUT/frames.png the cost against frames. A row that runs out
of memory says so. `python -m sana_train.cli.plan` predicts memory and time of any configuration instead.

examples:
  python -m sana_train.cli.benchmark out                            (tiny, on a CPU: a minute or two)
  python -m sana_train.cli.benchmark out scale=2b --batch 1 4
  python -m sana_train.cli.benchmark out scale=2b --parts train --kernels fused --recompute none full
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sana_train.cli.arguments import positive, video_size
from sana_train.cli.benchmark_parts import FRAMES, PARTS, POLICIES, Bench, Case, list_cases
from sana_train.cli.benchmark_run import (
    Subject,
    failures,
    is_late,
    own_report,
    read_subject,
    say,
    write_table,
)
from sana_train.cli.process import readable_errors
from sana_train.data.progress import ClipProgress
from sana_train.evaluation.speed.breakdown import breakdown
from sana_train.evaluation.speed.figure import frames_figure
from sana_train.evaluation.speed.store import Results
from sana_train.evaluation.speed.turns import ceilings, take_turns
from sana_train.training.optimiser import OPTIMISERS, OptimiserName, missing_library

FIGURE_FILE = "frames.png"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.benchmark", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("out", type=Path, help="folder of results.json, table.md and frames.png")
    top.add_argument("overrides", nargs="*", help="of train.py: scale=2b")
    top.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"{', '.join(PARTS)} (all)")
    top.add_argument(
        "--kernels", nargs="+", metavar="NAME", help="as model.kernels (on a GPU all, else the reference)"
    )
    top.add_argument(
        "--recompute", nargs="+", choices=POLICIES, default=list(POLICIES), metavar="POLICY",
        help=f"{', '.join(POLICIES)} (all)",
    )  # fmt: skip
    top.add_argument("--batch", nargs="+", type=positive, default=[1, 4], metavar="N", help="clips (1 4)")
    top.add_argument(
        "--optimisers", nargs="+", choices=OPTIMISERS, metavar="NAME",
        help=f"{', '.join(OPTIMISERS)} (those whose library is there)",
    )  # fmt: skip
    top.add_argument("--frames", nargs="+", type=positive, default=list(FRAMES), metavar="N",
        help="lengths of clips for the part of that name (%(default)s)")  # fmt: skip
    top.add_argument(
        "--size", type=video_size, metavar="HxWxF", help="of the clips (704x1280x81; tiny: its own)"
    )
    top.add_argument("--rounds", type=positive, default=2, help="turns of each way (%(default)s)")
    top.add_argument(
        "--minutes", type=positive, metavar="N", help="begin no row later; the next call goes on"
    )
    top.add_argument("--dry-run", action="store_true", help="list the rows and which are there already")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    with readable_errors():
        is_good = run(given)
    if not is_good:
        sys.exit(1)


def run(given: argparse.Namespace) -> bool:
    """Whether every row has a number or ran out of memory."""
    subject = read_subject(given.overrides, given.size, given.kernels)
    wanted = chosen_cases(given, subject)
    results = Results(given.out, subject.facts("ours"))
    left = [case for case in wanted if not all(results.has({**case.key, "way": way}) for way in case.ways)]
    sys.stdout.write(f"{subject.headline()}\n")
    if given.dry_run:
        for case in wanted:
            state = "to measure" if case in left else "there"
            sys.stdout.write(f"{case}: {', '.join(case.ways)} ({state})\n")
        return True
    subject.prepare_device()
    if results.ceilings is None:
        results.set_ceilings(ceilings(subject.device))
    measure(subject, left, results, given)
    frames_figure(results.content, given.out / FIGURE_FILE)
    write_table(given.out, own_report(results))
    problems = failures(results.rows)
    for row in problems:
        sys.stderr.write(f"{row['group']} {row['way']}: {row['error']}\n")
    return not problems


def chosen_cases(given: argparse.Namespace, subject: Subject) -> list[Case]:
    """What the command line asks for; left out is only what this machine cannot do, and that is said.

    Raises:
        ValueError: an optimiser whose library is not installed, or a breakdown without a GPU, by name.
    """
    on_gpu = subject.device.type == "cuda"
    if given.parts and "breakdown" in given.parts and not on_gpu:
        raise ValueError("--parts breakdown: kernels are told apart on a GPU, and torch sees none")
    parts = given.parts or [part for part in PARTS if on_gpu or part != "breakdown"]
    missing: dict[OptimiserName, str] = {
        name: why for name in OPTIMISERS if (why := missing_library(name)) is not None
    }
    for name, why in missing.items():
        if name in (given.optimisers or ()):
            raise ValueError(why)
    optimisers: list[OptimiserName] = given.optimisers or [name for name in OPTIMISERS if name not in missing]
    if given.optimisers is None and "optimiser" in parts:
        for name, why in missing.items():
            sys.stderr.write(f"without a row of {name}: {why}\n")
    return list_cases(subject, parts, given.batch, given.recompute, optimisers, given.frames)


def measure(subject: Subject, left: Sequence[Case], results: Results, given: argparse.Namespace) -> None:
    # Nothing computes in place on what a block returns, which FSDP warns of at every block.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    bench = Bench(subject)
    try:
        with ClipProgress("turns", sum(given.rounds * len(case.ways) for case in left)) as progress:
            for case in left:
                if is_late(given.minutes):
                    break
                torch.compiler.reset()  # code for sizes that are over
                results.add(rows_of(bench, case, given.rounds, lambda: progress.advance(1)))
    finally:
        bench.close()


def rows_of(bench: Bench, case: Case, rounds: int, on_turn: Callable[[], None]) -> list[dict[str, Any]]:
    """A case's rows, each told as soon as all of them are there; its contestants are let go."""
    contestants = bench.contestants(case)
    timings = take_turns(contestants, rounds, bench.subject.device, on_turn)
    rows: list[dict[str, Any]] = []
    for contestant in contestants:
        timing = timings[contestant.name].to_dict()
        row = {**case.key, **bench.facts(contestant.name, case), **timing}
        if case.key["group"] == "breakdown" and row["error"] is None:
            row["breakdown"] = breakdown(contestant.step)
            contestant.rest()
        rows.append(row)
        say(row)
    return rows


if __name__ == "__main__":
    main()
