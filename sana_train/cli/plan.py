"""``python -m sana_train.cli.plan``: memory and time of a training step, before it starts.

Counts every allocation of a forward and backward pass of the configured DiT on tensors without numbers, so
it needs no GPU, no weights and no clips; with gradients, optimiser and averaged weights that is the peak of
the device. One row for each way of recomputing (trainer.recompute) and each micro-batch. Encoders are not in
it: add what `python -m sana_train.cli.vae_table` says of encoding, or train on cached latents.

The time is that of the matrix work at the share of a chip's bf16 peak that --mfu says. The exit code is 1 if
the row of the configuration itself does not fit.

examples:
  python -m sana_train.cli.plan scale=2b
  python -m sana_train.cli.plan scale=2b --micro-batch 1 2 4 --size 480x832x81 --gib 139
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from sana_train.cli.arguments import positive, video_size
from sana_train.cli.config import RunConfig
from sana_train.cli.fit import pick_precision
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import load
from sana_train.cli.preflight import check_overrides, leave_out_parts
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.cli.schema import TARGET
from sana_train.cli.targets import resolve_target
from sana_train.cli.vae_choice import skeleton
from sana_train.data.bucket_sizes import size_tables
from sana_train.data.buckets import BucketClips
from sana_train.data.progress import ClipProgress
from sana_train.evaluation.record_tables import markdown_table
from sana_train.models.checkpoint import build_empty
from sana_train.models.flops import recomputed_flops, training_flops
from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.callbacks.throughput import PEAK_BF16_FLOPS
from sana_train.training.memory import StepMemory, step_memory
from sana_train.types import VideoShape

_POLICIES: tuple[Recompute, ...] = ("none", "selective", "full")
_GIB = 2**30
# At 2B between 5 % more and 5 % less were counted than allocated; the allocator took up to 7 % more than that
# (experiments/real_size).
_MARGIN = 1.1


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
    top.add_argument("--mfu", type=_share, default=0.25, metavar="SHARE",
        help="of its peak (%(default)s, as measured in experiments/real_size)")  # fmt: skip
    top.add_argument("--gpus", type=positive, default=1, metavar="N",
        help="each with all weights and its share of the step's clips; more than one keep the gradients "
        "twice, to exchange them (%(default)s)")  # fmt: skip
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    with readable_errors(), exit_when_preempted():
        if not plan(given):
            sys.exit(1)


@dataclass(frozen=True)
class _Case:
    """A row, before it is counted."""

    recompute: Recompute
    micro_batch: int


def plan(given: argparse.Namespace) -> bool:
    """Print the table; whether the configuration's own row fits."""
    config = load(check_overrides(leave_out_parts(given.overrides)))
    if config.model is None or config.autoencoder is None:
        raise ValueError("plan needs a DiT and its latent space: the sections `model` and `autoencoder`")
    node = config.model
    model = build_empty(lambda: instantiate(node), torch.device("meta"), torch.float32)
    if not isinstance(model, SanaVideoDiT):
        raise ValueError(f"plan counts a SanaVideoDiT; this configuration has a {type(model).__name__}")
    latent_shape = skeleton(config.autoencoder).spec.latent_shape(given.size or clip_size(config))
    own = _Case(config.trainer.recompute, config.training.micro_batch)
    batches = given.micro_batch or [own.micro_batch]
    cases = [_Case(policy, batch) for batch in batches for policy in _POLICIES]
    num_clips = config.training.global_batch / given.gpus
    found: dict[_Case, StepMemory] = {}
    with ClipProgress("counting", len(cases)) as progress:
        for case in cases:
            memory = step_memory(
                lambda: instantiate(node),
                latent_shape,
                micro_batch=case.micro_batch,
                is_accumulating=num_clips > case.micro_batch,
                recompute=case.recompute,
                optimiser=config.training.optimiser,
                use_autocast=pick_precision(config.training.precision, torch.device("cuda")) == "bf16-mixed",
            )
            exchanged = memory.gradients if given.gpus > 1 else 0
            found[case] = replace(
                memory, gradients=memory.gradients + exchanged, peak=memory.peak + exchanged
            )
            progress.advance(1)
    sys.stdout.write(_head(model, latent_shape, config, given) + "\n\n")
    sys.stdout.write(_table(model, latent_shape, own, found, num_clips, given) + "\n\n")
    return _verdict(own, found, given.gib)


def _head(
    model: SanaVideoDiT, shape: tuple[int, int, int, int], config: RunConfig, given: argparse.Namespace
) -> str:
    grid, num_context = _grid(shape), model.null_context.shape[0]
    num_tokens = math.prod(grid) // math.prod(model.patch_size)
    flops = training_flops(model, grid, num_context)
    size = " x ".join(map(str, shape))
    return "\n".join(
        [
            f"{sum(p.numel() for p in model.parameters()):,} parameters, {config.training.optimiser}",
            f"a clip: {size} latents, {num_tokens:,} tokens, {num_context} of text, "
            f"{flops / 1e12:,.3g} TFLOP forward and backward",
            f"a step: {config.training.global_batch} clips on {given.gpus} x {given.chip} at "
            f"{given.mfu:.0%} of {PEAK_BF16_FLOPS[given.chip] / 1e12:,.0f} TFLOP/s",
        ]
    )


def _table(
    model: SanaVideoDiT,
    shape: tuple[int, int, int, int],
    own: _Case,
    found: Mapping[_Case, StepMemory],
    num_clips: float,
    given: argparse.Namespace,
) -> str:
    grid, num_context = _grid(shape), model.null_context.shape[0]
    useful = training_flops(model, grid, num_context)
    rows = [["recompute", "micro-batch", "weights GiB", "activations GiB", "peak GiB", "fits", "step s", ""]]
    for case, memory in found.items():
        flops = useful + recomputed_flops(model, grid, num_context, case.recompute)
        seconds = num_clips * flops / (given.mfu * PEAK_BF16_FLOPS[given.chip])
        kept = memory.peak - memory.activations
        sizes = [f"{number / _GIB:.1f}" for number in (kept, memory.activations, memory.peak)]
        fits = "yes" if _fits(memory, given.gib) else "no"
        mark = "this one" if case == own else ""
        rows.append([case.recompute, str(case.micro_batch), *sizes, fits, f"{seconds:.3g}", mark])
    return markdown_table(rows) + "\n\nweights: with gradients, optimiser and averages"


def _verdict(own: _Case, found: Mapping[_Case, StepMemory], gib: int) -> bool:
    fitting = [case for case, memory in found.items() if _fits(memory, gib)]
    if own in fitting or own not in found:
        return True
    # The most clips at once, then the least computed again.
    best = max(fitting, key=lambda c: (c.micro_batch, -_POLICIES.index(c.recompute)), default=None)
    cure = (
        "no row does; smaller clips, or more GPUs that share the weights"
        if best is None
        else f"trainer.recompute={best.recompute} training.micro_batch={best.micro_batch} does"
    )
    sys.stdout.write(f"this configuration does not fit {gib} GiB with 5 % to spare; {cure}\n")
    return False


def _fits(memory: StepMemory, gib: int) -> bool:
    return memory.peak * _MARGIN <= gib * _GIB


def _grid(shape: tuple[int, int, int, int]) -> tuple[int, int, int]:
    return shape[1], shape[2], shape[3]


def clip_size(config: RunConfig) -> VideoShape:
    """Of the training clips; of clips in buckets the largest that there may be.

    Raises:
        ValueError: the data section does not say.
    """
    node = config.data.train
    if resolve_target(node[TARGET]) is BucketClips:
        assert config.autoencoder is not None
        tables = size_tables(node["resolutions"], skeleton(config.autoencoder).spec)
        height_px, width_px = max(chain.from_iterable(tables), key=math.prod)
        return VideoShape(max(node["frames"]), height_px, width_px)
    for node in (config.data.train, config.data.train.get("source"), config.data.heldout):
        found = _shape_of(node)
        if found is not None:
            return found
    raise ValueError("the data section does not say how large clips are; give --size HEIGHTxWIDTHxFRAMES")


def _shape_of(node: Any) -> VideoShape | None:
    if not isinstance(node, Mapping) or not isinstance(node.get("frames"), int):
        return None
    side = node.get("size_px")
    height_px, width_px = node.get("height_px", side), node.get("width_px", side)
    if height_px is None or width_px is None:
        return None
    return VideoShape(node["frames"], height_px, width_px)


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
