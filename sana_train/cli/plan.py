"""``python -m sana_train.cli.plan``: memory and time of a training step, before it starts.

Counts every allocation of a forward and backward pass of the configured DiT on tensors without numbers,
so it needs no GPU, no weights and no clips; with gradients, optimiser and averaged weights that is the peak
of a GPU. One row for each way of recomputing (trainer.recompute) and each micro-batch. Encoders are not in
it: add what `python -m sana_train.cli.vae_table` says of encoding, or train on cached latents.

Seconds are the matrix FLOPs, those of recomputing included, over the rate at which that way of computing
was measured (data/step_rates.json, which names its records), and what the optimiser moves; --mfu takes a
share of the chip's peak instead. Rates are the training loop's where it was timed; below the table stands
what was timed instead. Measured were networks of 2B: small ones take longer than this says. With
--gpus and trainer=fsdp2 or hsdp, weights, gradients, moments and averages are shared; exchanges run beside
the computing and count where they are longer. Rates of exchange are data sheets', not measured. The exit
code is 1 if the row of the configuration itself does not fit.

examples:
  python -m sana_train.cli.plan scale=2b
  python -m sana_train.cli.plan scale=2b --micro-batch 1 2 4 --size 480x832x81 --gib 139 --chip H200
  python -m sana_train.cli.plan scale=2b trainer=fsdp2 --gpus 8 --micro-batch 1 4
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence

from sana_train.cli.arguments import positive, video_size
from sana_train.cli.load import load
from sana_train.cli.plan_rows import (
    GIB,
    Case,
    Machine,
    Planner,
    Prediction,
    all_cases,
    best_that_fits,
    change_to,
    predictions,
)
from sana_train.cli.preflight import check_overrides, leave_out_parts
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.data.progress import ClipProgress
from sana_train.evaluation.record_tables import markdown_table
from sana_train.training.callbacks.throughput import PEAK_BF16_FLOPS

_WIDTH = 100


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.plan", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("overrides", nargs="*", help="of train.py: scale=2b")
    top.add_argument("--micro-batch", type=positive, nargs="+", metavar="N",
        help="clips at once (training.micro_batch)")  # fmt: skip
    top.add_argument(
        "--size", type=video_size, metavar="HxWxF", help="of the clips (those of the data section)"
    )
    top.add_argument(
        "--gib", type=positive, default=78, metavar="N", help="of the GPU (%(default)s, an H100)"
    )
    top.add_argument("--chip", choices=sorted(PEAK_BF16_FLOPS), default="H100", help="(%(default)s)")
    top.add_argument("--mfu", type=_share, metavar="SHARE",
        help="of its peak, in the place of measured rates")  # fmt: skip
    top.add_argument("--gpus", type=positive, default=1, metavar="N",
        help="that share the step's clips; under trainer=ddp each has all weights, and gradients twice, to "
        "exchange them (%(default)s)")  # fmt: skip
    top.add_argument("--gpus-per-node", type=positive, default=8, metavar="N", help="(%(default)s)")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    with readable_errors(), exit_when_preempted():
        if not plan(given):
            sys.exit(1)


def plan(given: argparse.Namespace) -> bool:
    """Print the table; whether the configuration's own row fits."""
    config = load(check_overrides(leave_out_parts(given.overrides)))
    machine = Machine(given.chip, given.gib, given.gpus, given.gpus_per_node, given.mfu)
    planner = Planner(config, machine, given.size)
    cases = all_cases(given.micro_batch or [planner.own.micro_batch])
    with ClipProgress("counting", len(cases)) as progress:
        found = predictions(planner, cases, lambda: progress.advance(1))
    sys.stdout.write(f"{head(planner)}\n\n{table(planner, found)}\n\n")
    own = found.get(planner.own)
    if own is None or own.fits(given.gib):
        return True
    best = best_that_fits(found, planner.own, given.gib)
    cure = (
        "no row does; smaller clips, or more GPUs that share the weights"
        if best is None
        else f"{change_to(best)} does"
    )
    sys.stdout.write(f"this configuration does not fit {given.gib} GiB with 5 % to spare; {cure}\n")
    return False


def head(planner: Planner) -> str:
    """What is planned, and where."""
    machine, config = planner.machine, planner.config
    size = " x ".join(map(str, planner.latent_shape))
    peak = PEAK_BF16_FLOPS[machine.chip] / 1e12
    pace = "" if machine.mfu is None else f" at {machine.mfu:.0%} of {peak:,.0f} TFLOP/s"
    shared = "" if planner.shards == 1 else f", {config.trainer.strategy} over {planner.shards}"
    return "\n".join(
        [
            f"{planner.num_parameters:,} parameters, {config.training.optimiser}",
            f"a clip: {size} latents, {planner.num_tokens:,} tokens, {planner.num_context} of text, "
            f"{planner.useful_flops / 1e12:,.3g} TFLOP forward and backward",
            f"a step: {config.training.global_batch} clips on {machine.num_gpus} x {machine.chip}"
            f"{shared}{pace}",
        ]
    )


def table(planner: Planner, found: Mapping[Case, Prediction]) -> str:
    """One row a case, at most 100 columns."""
    rows = [["recompute", "micro-batch", "weights GiB", "activations GiB", "peak GiB", "fits", "step s", ""]]
    for case, row in found.items():
        memory = row.memory
        kept = memory.peak - memory.activations
        sizes = [f"{number / GIB:.1f}" for number in (kept, memory.activations, memory.peak)]
        fits = "yes" if row.fits(planner.machine.gib) else "no"
        mark = "this one" if case == planner.own else ""
        rows.append([case.recompute, str(case.micro_batch), *sizes, fits, f"{row.step_s:.3g}", mark])
    notes = ["weights: with gradients, optimiser and averages"]
    if planner.machine.num_gpus > 1:
        longest = max(row.exchange_s for row in found.values())
        notes.append(f"exchanges, beside the computing: up to {longest:.3g} s a step")
    notes += where_seconds_are_from(planner, found)
    wrapped = (textwrap.fill(note, _WIDTH, subsequent_indent="  ") for note in notes)
    return "\n".join([markdown_table(rows), "", *wrapped])


def where_seconds_are_from(planner: Planner, found: Mapping[Case, Prediction]) -> list[str]:
    """A line for each source of rates, and one if any of them is not the training loop's."""
    sources: dict[str, dict[str, None]] = {}
    for case, row in found.items():
        if row.rate is not None:
            sources.setdefault(row.rate.source, {})[case.recompute] = None
    lines = [f"seconds of {', '.join(policies)}: {source}" for source, policies in sources.items()]
    if any(row.rate is not None and not row.rate.is_of_loop for row in found.values()):
        least, most = (100 * (ratio - 1) for ratio in planner.rates.loop_over_pass)
        lines.append(
            f"what is not the training loop's: it took {least:.0f} to {most:.0f} % longer than single passes "
            "where both were timed"
        )
    return lines


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.25, got {text}")
    return share


if __name__ == "__main__":
    main()
