"""``python -m sana_train.cli.benchmark_peers``: our DiT's steps beside diffusers' SANA-Video, in one process.

Both have the same weights, through our key tables, and the same inputs: random latents, captions of
different lengths in a padded batch. First their outputs are compared (exit code 1 if they differ); then they
take turns:

train    float32 weights under bf16 autocast, fused AdamW in the step, no clipping: batch 1 without
         recomputing and with all of it, batch 4 with all of it and, ours alone, with every other policy
denoise  one evaluation with guidance (a batch of 2), bf16 weights; ours has prepared its captions

Steps are timed by CUDA events, medians over rounds; cuDNN may try its algorithms on both sides, as training
of ours does. A row that runs out of memory says so. OUT/results.json is written row by row, so the same
command goes on where an earlier one ended; OUT/table.md holds ms, the ratio to diffusers, the share of the
matmul ceiling measured in this run, MFU of the chip's data-sheet peak, and peak memory.

examples:
  python -m sana_train.cli.benchmark_peers out scale=2b
  python -m sana_train.cli.benchmark_peers out scale=tiny --rounds 1
  python -m sana_train.cli.benchmark_peers out scale=2b --kernels fused --dry-run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sana_train.cli import benchmark_cases as cases
from sana_train.cli.arguments import positive, video_size
from sana_train.cli.benchmark_run import (
    Subject,
    failures,
    is_late,
    peers_report,
    read_subject,
    say,
    write_table,
)
from sana_train.cli.config import Node
from sana_train.cli.diffusers_twin import diffusers_twin, twin_velocity
from sana_train.cli.process import readable_errors
from sana_train.data.progress import ClipProgress
from sana_train.evaluation.speed.store import Results
from sana_train.evaluation.speed.turns import Contestant, ceilings, take_turns
from sana_train.flow.guidance import ClassifierFreeGuidance

PEER = "diffusers"
# Of outputs, ||a - b|| / ||b||: float32 of both sides; bf16 of ours, in units of the peer's own.
_FLOAT32_BOUND, _ROUNDING = 1e-4, 1.5


@dataclass(frozen=True)
class _Case:
    """A step that both sides do, or ours alone: the peer recomputes nothing or everything."""

    group: str
    batch: int
    recompute: Any  # a policy of training; None for an evaluation
    with_peer: bool = True

    def __str__(self) -> str:
        return f"{self.group}, batch {self.batch}" + (
            f", recompute {self.recompute}" if self.recompute else ""
        )

    def key(self) -> dict[str, Any]:
        return {"group": self.group, "batch": self.batch, "recompute": self.recompute}

    def ways(self, subject: Subject) -> list[str]:
        return [*([PEER] if self.with_peer else []), *subject.kernels]


_CASES = (
    _Case("train", 1, "none"),
    _Case("train", 1, "full"),
    _Case("train", 4, "full"),
    _Case("denoise", 2, None),
    _Case("train", 4, "selective", with_peer=False),
    _Case("train", 4, "none", with_peer=False),
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.benchmark_peers", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("out", type=Path, help="folder of results.json and table.md")
    top.add_argument("overrides", nargs="*", help="of train.py: scale=2b")
    top.add_argument(
        "--size", type=video_size, metavar="HxWxF", help="of the clips (704x1280x81; tiny: 128x128x17)"
    )
    top.add_argument("--kernels", nargs="+", metavar="NAME",
        help="of ours, as model.kernels takes them (on a GPU all, else the reference)")  # fmt: skip
    top.add_argument("--rounds", type=positive, default=3, help="turns of each side (%(default)s)")
    top.add_argument(
        "--minutes", type=positive, metavar="N", help="begin no row later; the next call goes on"
    )
    top.add_argument("--dry-run", action="store_true", help="list the rows and what is there already")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    with readable_errors():
        is_good = run(given)
    if not is_good:
        sys.exit(1)


def run(given: argparse.Namespace) -> bool:
    """Whether both sides agree, and no row is without a number for another reason than memory."""
    subject = read_subject(given.overrides, given.size, given.kernels)
    if given.dry_run:
        sys.stdout.write(f"{subject.headline()}\n\n")
        for case in _CASES:
            sys.stdout.write(f"{case}: {', '.join(case.ways(subject))}\n")
        return True
    results = Results(given.out, subject.facts("peers"))
    sys.stdout.write(f"{subject.headline()}\n")
    subject.prepare_device()
    if results.ceilings is None:
        results.set_ceilings(ceilings(subject.device))
    left = [case for case in _CASES if not results.has(case.key())]
    if left:
        sides = _Sides(subject)
        if not results.has({"group": "outputs"}):
            results.add(sides.compare_outputs())
        num_turns = sum(given.rounds * len(case.ways(subject)) for case in left)
        with ClipProgress("turns", num_turns) as progress:
            for case in left:
                if is_late(given.minutes):
                    break
                torch.compiler.reset()  # code for sizes that are over
                contestants = sides.contestants(case)
                timings = take_turns(contestants, given.rounds, subject.device, lambda: progress.advance(1))
                flops = subject.flops(case.group, case.batch)
                rows = [
                    {**case.key(), "way": name, "flops": flops, **timing.to_dict()}
                    for name, timing in timings.items()
                ]
                results.add(rows)
                for row in rows:
                    say(row)
    write_table(given.out, peers_report(results, PEER))
    problems = [*disagreements(results.rows), *map(str, failures(results.rows))]
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return not problems


def disagreements(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What says that both sides do not compute the same, of the rows of compared outputs."""
    outputs = {(row["dtype"], row["way"]): row["distance"] for row in rows if row["group"] == "outputs"}
    bound = {"float32": _FLOAT32_BOUND, "autocast": _FLOAT32_BOUND + _ROUNDING * outputs["autocast", PEER]}
    return [
        f"{way} in {dtype} is {distance:.1e} from diffusers in float32; expected at most {bound[dtype]:.1e}"
        for (dtype, way), distance in outputs.items()
        if not distance <= bound[dtype]
    ]


class _Sides:
    """Both networks with the same weights: in float32 for training, then in bf16 for sampling."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        first, *others = subject.kernels
        self.model = cases.build_dit(cases.with_kernels(subject.node, first), subject.device)
        self.ours = {first: self.model}
        for name in others:
            self.ours[name] = cases.same_weights(self.model, cases.with_kernels(subject.node, name))
        self.twin: Any = diffusers_twin(self.model)

    def compare_outputs(self) -> list[dict[str, Any]]:
        """||output - truth|| / ||truth||, the truth being diffusers in float32, of a ragged batch."""
        inputs, device = self.subject.inputs(2), self.subject.device
        outputs = {}
        with torch.no_grad():
            with _exact_products():
                truth = twin_velocity(self.twin, inputs)
                exact = cases.with_kernels(Node({**self.subject.node, "compat": "diffusers"}), "reference")
                ours = cases.same_weights(self.model, exact)
                outputs["float32", "reference"] = cases.our_velocity(ours, inputs)
            with cases.autocast(device):
                outputs["autocast", PEER] = twin_velocity(self.twin, inputs)
                for name, model in self.ours.items():
                    outputs["autocast", name] = cases.our_velocity(model, inputs)
        return [
            {"group": "outputs", "dtype": dtype, "way": way, "error": None,
             "distance": float((output.float() - truth).norm() / truth.norm())}
            for (dtype, way), output in outputs.items()
        ]  # fmt: skip

    def contestants(self, case: _Case) -> list[Contestant]:
        return [
            (self._denoise if case.group == "denoise" else self._train)(way, case)
            for way in case.ways(self.subject)
        ]

    def _train(self, way: str, case: _Case) -> Contestant:
        cases.cast((self.twin, *self.ours.values()), torch.float32, self.subject.device)
        inputs = self.subject.inputs(case.batch)
        if way != PEER:
            size = cases.resident_bytes(self.model)
            return cases.our_train_contestant(way, self.ours[way], inputs, case.recompute, resident=size)
        twin = self.twin.train()

        def velocity() -> torch.Tensor:
            if case.recompute == "full":
                twin.enable_gradient_checkpointing()
            else:
                twin.disable_gradient_checkpointing()
            with cases.autocast(self.subject.device):
                return twin_velocity(twin, inputs)

        size = cases.resident_bytes(twin)
        return cases.train_contestant(way, list(twin.parameters()), velocity, inputs.target, resident=size)

    def _denoise(self, way: str, case: _Case) -> Contestant:
        cases.cast((self.twin, *self.ours.values()), torch.bfloat16, self.subject.device)
        inputs = self.subject.inputs(case.batch)
        num_guided = case.batch // 2
        if way != PEER:
            size = cases.resident_bytes(self.model)
            return cases.our_denoise_contestant(way, self.ours[way], inputs, num_guided, size)
        twin = self.twin.eval()
        cast = {name: getattr(inputs, name).to(twin.dtype) for name in ("latents", "context")}
        inputs = replace(inputs, **cast)
        guided = ClassifierFreeGuidance(cases.GUIDANCE).from_doubled(
            lambda latents, t: twin_velocity(twin, replace(inputs, latents=latents, t=t))
        )

        def step() -> None:
            with torch.no_grad():
                guided(inputs.latents[:num_guided], inputs.t[:num_guided])

        return Contestant(way, step, resident=cases.resident_bytes(twin))


@contextmanager
def _exact_products() -> Iterator[None]:
    """Float32 without TF32, in products and convolutions."""
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


if __name__ == "__main__":
    main()
