"""Memory and seconds of a training step, row for row: for ``cli.plan``, and for a run that is out of memory.

Memory is counted on tensors without numbers; of fused kernels on a machine without Triton, which the count
needs, activations are as measured. Seconds are matrix FLOPs over rates that were measured (``plan_rates``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, get_args

import torch

from sana_train.cli.config import Node, RunConfig
from sana_train.cli.fit import pick_precision
from sana_train.cli.instantiate import instantiate
from sana_train.cli.plan_rates import Rate, Rates, read_rates
from sana_train.cli.schema import TARGET
from sana_train.cli.targets import resolve_target
from sana_train.cli.vae_choice import skeleton
from sana_train.data.bucket_sizes import size_tables
from sana_train.data.buckets import BucketClips
from sana_train.models.checkpoint import build_empty
from sana_train.models.flops import recomputed_flops, training_flops
from sana_train.models.layers.kernels import HAS_TRITON
from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.callbacks.throughput import PEAK_BF16_FLOPS
from sana_train.training.memory import StepMemory, step_memory
from sana_train.types import VideoShape

POLICIES: tuple[Recompute, ...] = get_args(Recompute)
GIB = 2**30
# At 2B between 5 % more and 5 % less were counted than allocated, with fused kernels 1 %; the allocator took
# up to 7 % more than that (experiments/real_size, experiments/speed).
MARGIN = 1.1
# Of a parameter in a step, in float32: gradients are measured and scaled, averages read, moved and written.
_CLIP_BYTES, _AVERAGE_BYTES, _ADAMW_BYTES = 12, 12, 28


@dataclass(frozen=True)
class Case:
    """A row, before it is predicted."""

    recompute: Recompute
    micro_batch: int


@dataclass(frozen=True)
class Machine:
    """What a step is to run on.

    Attributes:
        chip: of ``PEAK_BF16_FLOPS``.
        gib: memory of one GPU.
        num_gpus: of all nodes.
        gpus_per_node: those that exchange over NVLink.
        mfu: share of the chip's peak that products reach, in the place of rates that were measured.
    """

    chip: str
    gib: float
    num_gpus: int = 1
    gpus_per_node: int = 8
    mfu: float | None = None


@dataclass(frozen=True)
class Prediction:
    """Of one row, for one GPU.

    Attributes:
        memory: what it holds.
        step_s: an optimiser step over all its micro-batches; exchanges run beside it and count where they are
            longer.
        exchange_s: of weights and gradients with other GPUs, in a step.
        rate: what seconds are from; None with ``Machine.mfu``.
    """

    memory: StepMemory
    step_s: float
    exchange_s: float
    rate: Rate | None

    def fits(self, gib: float) -> bool:
        return self.memory.peak * MARGIN <= gib * GIB


class Planner:
    """Predicts rows of one configuration on one machine.

    Args:
        config: with a DiT and an autoencoder.
        machine: where.
        size: of the clips; None: those of the data section.

    Raises:
        ValueError: no DiT, no latent space, or no size.
    """

    def __init__(self, config: RunConfig, machine: Machine, size: VideoShape | None = None) -> None:
        if config.model is None or config.autoencoder is None:
            raise ValueError("plan needs a DiT and its latent space: the sections `model` and `autoencoder`")
        self.config, self.machine = config, machine
        self.node: Node = config.model
        model = build_empty(lambda: instantiate(self.node), torch.device("meta"), torch.float32)
        if not isinstance(model, SanaVideoDiT):
            raise ValueError(f"plan counts a SanaVideoDiT; this configuration has a {type(model).__name__}")
        self.model = model
        self.latent_shape = skeleton(config.autoencoder).spec.latent_shape(size or clip_size(config))
        self.rates: Rates = read_rates(machine.chip)
        self.own = Case(config.trainer.recompute, config.training.micro_batch)

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.latent_shape[1], self.latent_shape[2], self.latent_shape[3]

    @property
    def num_context(self) -> int:
        return self.model.null_context.shape[0]

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid) // math.prod(self.model.patch_size)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def num_clips(self) -> float:
        """Of a step, on one GPU."""
        return self.config.training.global_batch / self.machine.num_gpus

    @property
    def useful_flops(self) -> int:
        """Of one clip, forward and backward."""
        return training_flops(self.model, self.grid, self.num_context)

    @property
    def shards(self) -> int:
        """GPUs that share one copy of the weights."""
        trainer, machine = self.config.trainer, self.machine
        if trainer.strategy == "ddp":
            return 1
        if trainer.strategy == "fsdp2":
            return machine.num_gpus
        return min(machine.num_gpus, trainer.shard_ranks or machine.gpus_per_node)

    def predict(self, case: Case) -> Prediction:
        """One row; takes seconds at true size."""
        machine, flops = self.machine, self.useful_flops
        flops += recomputed_flops(self.model, self.grid, self.num_context, case.recompute)
        kernels = self.node.get("kernels", "reference")
        rate = self.rates.of(kernels, case.recompute) if machine.mfu is None else None
        memory = self._memory(case, rate)
        per_s = rate.flops_per_s if rate is not None else (machine.mfu or 0.0) * PEAK_BF16_FLOPS[machine.chip]
        computing_s = self.num_clips * flops / per_s + self._updating_s()
        if rate is not None and self.config.trainer.strategy != "ddp":
            computing_s *= self.rates.sharded_over_whole
        exchange_s = self._exchange_s(case)
        return Prediction(memory, max(computing_s, exchange_s), exchange_s, rate)

    def _memory(self, case: Case, rate: Rate | None) -> StepMemory:
        # A compiler takes no tensors without numbers. Where it was not measured, plain PyTorch keeps more.
        counted = {"kernels": "reference"} if self.node.get("kernels") == "compiled" else {}
        whole = step_memory(
            lambda: instantiate({**self.node, **counted}),
            self.latent_shape,
            micro_batch=case.micro_batch,
            is_accumulating=self.num_clips > case.micro_batch,
            recompute=case.recompute,
            optimiser=self.config.training.optimiser,
            use_autocast=self._uses_autocast,
        )
        kernels = self.node.get("kernels", "reference")
        is_counted = kernels == "reference" or (kernels == "fused" and HAS_TRITON)
        if not is_counted and rate is not None and rate.activation_bytes is not None:
            kept = whole.peak - whole.activations
            if self.num_clips <= case.micro_batch:  # measured so: gradients come as activations go
                kept -= whole.gradients
            size = len(self.model.blocks) * self.model.final_layer.linear.in_features
            size /= self.rates.depth * self.rates.width
            activations = rate.activation_bytes * size * self.num_tokens * case.micro_batch
            whole = replace(whole, peak=int(kept + activations))
        if self.machine.num_gpus == 1:
            return whole
        if self.shards == 1:  # gradients are exchanged in buffers of their own
            return replace(whole, gradients=2 * whole.gradients, peak=whole.peak + whole.gradients)
        parts = {
            name: getattr(whole, name) // self.shards for name in ("weights", "gradients", "optimiser", "ema")
        }
        return StepMemory(**parts, peak=sum(parts.values()) + whole.activations + self._gathered_bytes())

    def _gathered_bytes(self) -> int:
        """Two blocks whose weights are whole at a time, and a block's gradients, before and while summed."""
        width = 2 if self._uses_autocast else 4
        block = sum(parameter.numel() for parameter in self.model.blocks[0].parameters())
        rest = self.num_parameters - block * len(self.model.blocks)
        return rest * width + block * (2 * width + width + 4)

    @property
    def _uses_autocast(self) -> bool:
        return pick_precision(self.config.training.precision, torch.device("cuda")) == "bf16-mixed"

    def _updating_s(self) -> float:
        """Clipping, averages and AdamW as fast as memory is, other optimisers as measured beside AdamW."""
        slower = self.rates.optimisers_over_adamw[self.config.training.optimiser]
        moved = _CLIP_BYTES + _AVERAGE_BYTES + _ADAMW_BYTES * slower
        return self.num_parameters / self.shards * moved / self.rates.memory_bytes_per_s

    def _exchange_s(self, case: Case) -> float:
        """Gradients once a step, or, sharded, weights twice and gradients once a micro-batch."""
        machine, shards = self.machine, self.shards
        copies = machine.num_gpus // shards
        seconds = 0.0
        if shards > 1:
            width = 2 if self._uses_autocast else 4
            num_passes = math.ceil(self.num_clips / case.micro_batch)
            moved = num_passes * self.num_parameters * (2 * width + 4) * (shards - 1) / shards
            seconds += moved / self._link(shards)
        if copies > 1:
            moved = 2 * 4 * self.num_parameters / shards * (copies - 1) / copies
            seconds += moved / self._link(machine.num_gpus)
        return seconds

    def _link(self, num_gpus: int) -> float:
        is_near = num_gpus <= self.machine.gpus_per_node
        return self.rates.node_bytes_per_s if is_near else self.rates.network_bytes_per_s


def best_that_fits(
    found: Mapping[Case, Prediction], own: Case, gib: float, below: int | None = None
) -> Case | None:
    """The most clips at once, then the fewest seconds, of rows that fit; None if none does.

    Args:
        below: bytes that it must stay under, where one that was to fit did not.
    """
    fitting = [
        case
        for case, row in found.items()
        if row.fits(gib) and case != own and (below is None or row.memory.peak < below)
    ]
    return max(fitting, key=lambda case: (case.micro_batch, -found[case].step_s), default=None)


def change_to(case: Case) -> str:
    """A row as overrides."""
    return f"trainer.recompute={case.recompute} training.micro_batch={case.micro_batch}"


def all_cases(batches: Sequence[int]) -> list[Case]:
    return [Case(policy, batch) for batch in batches for policy in POLICIES]


def predictions(
    planner: Planner, cases: Sequence[Case], on_case: Callable[[], None] = lambda: None
) -> dict[Case, Prediction]:
    """Every case's; ``on_case`` is called after each."""
    found = {}
    for case in cases:
        found[case] = planner.predict(case)
        on_case()
    return found


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
