"""The sections of a training configuration and the type of every key.

A section that is a class of the package (``_target_``) is a ``Node``: its keys are its constructor's
arguments. The other sections are dataclasses here. Values live in ``conf/``, never here: a field has
a default only where leaving the section out is a choice of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NewType

from sana_train.evaluation.stages.names import Column

# A mapping with ``_target_``; resolved (no interpolations) and checked against the signature.
Node = NewType("Node", dict[str, Any])

HIGH_NOISE = 0.8  # that of evaluation/convergence/loss_bands, whose import would take seconds


def _at_least_1(key: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{key}={value}: expected at least 1")


@dataclass(frozen=True)
class PathsConfig:
    """Where things lie on this machine; never part of a run's identity."""

    runs: str  # run directories
    data: str  # rendered clips and latent shards
    latents: str  # what sana_train.cli.precompute wrote, for latents.mode=precomputed
    weights: str  # shipped tiny weights
    prompts: str  # shipped texts that language models read before captions
    models: str  # local copies of published weights, looked at before the hub's cache


@dataclass(frozen=True)
class TrainingConfig:
    """What decides the result of a run, and how often it is saved."""

    seed: int
    max_steps: int  # where this process stops; no schedule depends on it
    global_batch: int  # clips per optimiser step over all ranks
    micro_batch: int  # clips per forward pass of one rank; the rest of the global batch is accumulated
    optimiser: Literal["adamw", "adamw_8bit", "muon"]  # muon: for matrices, with AdamW for the rest
    lr: float  # constant after warm-up
    warmup_steps: int
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_norm: float
    ema_decay: float
    precision: Literal["auto", "bf16-mixed", "32-true"]  # auto: bf16 on a GPU, fp32 on a CPU
    checkpoint_every: int  # steps between full checkpoints
    keep_full: int  # full checkpoints kept
    milestones: list[int]  # steps whose weights are kept for good; 0: before training

    def __post_init__(self) -> None:
        for name in ("max_steps", "global_batch", "micro_batch", "checkpoint_every", "keep_full"):
            _at_least_1(f"training.{name}", getattr(self, name))
        for name, value in {"lr": self.lr, "eps": self.eps, "clip_norm": self.clip_norm}.items():
            if not value > 0.0:
                raise ValueError(f"training.{name}={value}: expected a number above 0")
        for name, value in {"warmup_steps": self.warmup_steps, "weight_decay": self.weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"training.{name}={value}: expected 0 or more")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"training.betas={list(self.betas)}: expected two numbers in [0, 1)")
        if self.global_batch % self.micro_batch:
            most = min(self.micro_batch, self.global_batch)
            whole = next(n for n in range(most, 0, -1) if self.global_batch % n == 0)
            raise ValueError(
                f"training.global_batch={self.global_batch} does not divide into micro-batches of "
                f"training.micro_batch={self.micro_batch}; set training.micro_batch={whole}, for one"
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"training.ema_decay={self.ema_decay}: expected a number in [0, 1), e.g. 0.999")


@dataclass(frozen=True)
class TrainerConfig:
    """Where and how the run is executed; may change on every resume."""

    accelerator: Literal["auto", "cpu", "gpu"]
    strategy: Literal["ddp", "fsdp2", "hsdp"]  # of more ranks than one
    shard_ranks: int | None  # of hsdp: neighbouring ranks that share one copy; None: those of a node
    devices: int | Literal["auto"]
    num_nodes: int
    num_workers: int  # data processes per rank
    # What the DiT's backward pass computes again to save memory; results do not depend on it.
    recompute: Literal["none", "selective", "full"]
    deterministic: bool  # bit-identical resume on a GPU, at the price of slower kernels
    log_every: int  # optimiser steps between logged training metrics
    max_minutes: float | None  # of this process, set-up included; then it saves
    at_limit: Literal["stop", "finish"]  # stop: the same command goes on; finish: measure and export now
    stall_s: float | None  # all ranks end after this long without progress of one; None: torch's half hour

    def __post_init__(self) -> None:
        if self.shard_ranks is not None:
            _at_least_1("trainer.shard_ranks", self.shard_ranks)
            if self.strategy != "hsdp":
                raise ValueError(
                    f"trainer.shard_ranks={self.shard_ranks} says how many ranks share a copy under "
                    f"trainer=hsdp; this is {self.strategy}. Choose trainer=hsdp, or leave it out"
                )
        if self.stall_s is not None and self.stall_s <= 0:
            raise ValueError(f"trainer.stall_s={self.stall_s}: expected seconds, or null for no limit")
        _at_least_1("trainer.num_nodes", self.num_nodes)
        _at_least_1("trainer.log_every", self.log_every)
        if self.devices != "auto":
            _at_least_1("trainer.devices", self.devices)


@dataclass(frozen=True)
class ConvergenceConfig:
    """What is measured on the grid of steps, with fixed clips and fixed noise."""

    steps: list[int]  # the grid
    noise_levels: list[float]  # t of the held-out flow loss bands
    num_loss_clips: int
    # Generated clips for the S90 numbers; 0 logs loss bands only. auto: 256 on a GPU, 32 on a CPU.
    num_samples: int | Literal["auto"]
    num_clean_estimates: int  # clips decoded from one step at high noise; 0: none
    num_strips: int  # clips shown in strips and samples
    batch_size: int
    generator: Node  # sampler, steps, shift and guidance of every sample
    # A DiT trained natively in the target space: its levels (.npz), or its weights, measured once.
    reference: str | None
    stop_on_collapse: bool

    def __post_init__(self) -> None:
        outside = [level for level in self.noise_levels if not 0.0 < level < 1.0]
        if outside or not any(level >= HIGH_NOISE for level in self.noise_levels):
            raise ValueError(
                f"convergence.noise_levels={self.noise_levels}: expected levels between 0 and 1, one of them "
                f"at least {HIGH_NOISE:g}, where semantics are decided"
            )
        _at_least_1("convergence.num_loss_clips", self.num_loss_clips)
        _at_least_1("convergence.batch_size", self.batch_size)


@dataclass(frozen=True)
class TwoStageConfig:
    """What both stages are judged by, in training and by evaluate.py."""

    data: Node  # held-out clips at twice the height and width that stage 1 makes
    columns: list[Column]
    steps: list[int]  # of training
    num_clips: int
    num_shown: int
    batch_size: int
    seed: int
    fps: float
    num_draws: int  # of the bootstrap
    prompts: str | None  # folder of cached prompts; None: the text encoder's context for both streams
    clip: str | None  # folder or hub id of a CLIP that scores frames against captions

    def __post_init__(self) -> None:
        for name in ("num_clips", "batch_size", "num_draws"):
            _at_least_1(f"two_stage.{name}", getattr(self, name))
        if not self.columns:
            raise ValueError("two_stage.columns=[]: nothing to judge; give e.g. [stage1,stage2,ceiling]")


@dataclass(frozen=True)
class SourceConfig:
    """The space the DiT comes from."""

    autoencoder: Node
    checkpoint: str  # safetensors of the DiT, or a published repository's id
    model: dict[str, Any]  # arguments of ``model`` which differ in this space


@dataclass(frozen=True)
class LatentsConfig:
    """How clips become latents."""

    # cached: encoded once to latent shards; resident: encoded once per process and kept on the device;
    # online: encoded anew in every step; auto: online on a GPU, cached on a CPU; precomputed: read from
    # paths.latents and never made here.
    mode: Literal["auto", "cached", "resident", "online", "precomputed"]
    batch_size: int  # clips encoded at a time
    # Of cached and precomputed latents, and of what encodes them, which for float16 is float32.
    dtype: Literal["bfloat16", "float16", "float32"]
    # Of precomputed ones: shards to read, where they are not those of paths.latents.
    train: str | list[str] | None
    heldout: str | list[str] | None
    max_new_holes: int | None  # as of clips: lost while they are read; None: 1 %, at least 10


@dataclass(frozen=True)
class DataConfig:
    """Clips to train on and clips to judge by."""

    train: Node
    heldout: Node
    # Of so many shards at a time clips are mixed, for shards far away or larger than memory; None: of all.
    shuffle_window_shards: int | None = None

    def __post_init__(self) -> None:
        if self.shuffle_window_shards is not None:
            _at_least_1("data.shuffle_window_shards", self.shuffle_window_shards)


@dataclass(frozen=True)
class RunConfig:
    """All of ``conf/train.yaml``. Optional sections are those which not every task needs."""

    name: str  # of the experiment
    scale: str
    run_id: str | None  # None: computed from everything that changes the result
    paths: PathsConfig
    training: TrainingConfig
    trainer: TrainerConfig
    task: Node
    data: DataConfig
    logger: Node | None = None
    model: Node | None = None
    autoencoder: Node | None = None
    source: SourceConfig | None = None
    latents: LatentsConfig | None = None
    text: Node | None = None
    adaptation: Node | None = None
    convergence: ConvergenceConfig | None = None
    reader: Node | None = None
    refiner: Node | None = None
    upsampler: Node | None = None
    two_stage: TwoStageConfig | None = None


@dataclass(frozen=True)
class RefinePaths:
    """Where weights lie on this machine."""

    weights: str  # shipped tiny weights
    models: str  # local copies of published weights, looked at before the hub's cache


@dataclass(frozen=True)
class RefineConfig:
    """All of ``conf/refine.yaml``."""

    autoencoder: Node  # the space the refiner lives in
    refiner: Node
    paths: RefinePaths
    upsampler: Node | None = None


# Arguments which the build code passes although a YAML could hold them, by section.
SUPPLIED: dict[str, frozenset[str]] = {
    "task": frozenset({"parameter_groups"}),
    "logger": frozenset({"save_dir", "name", "id"}),
    "data.train": frozenset({"device", "latent_spec"}),
    "data.heldout": frozenset({"device", "latent_spec"}),
    "two_stage.data": frozenset({"device", "latent_spec"}),
}

# Keys of text files whose content changes the result, wherever they lie.
TEXT_FILE_KEYS = ("text.instruction",)

# Of clips in buckets, for which ``training.micro_batch`` decides what a step holds.
BUCKETED = "sana_train.data.buckets.BucketClips"

# Keys a resumed run may change, with everything under them.
FREE_KEYS = (
    "run_id",
    "paths",
    "trainer",
    "logger",
    "training.max_steps",
    "training.micro_batch",
    "training.checkpoint_every",
    "training.keep_full",
    "training.milestones",
    "latents.max_new_holes",
    *(
        f"data.{split}.{key}"
        for split in ("train", "heldout")
        for key in ("cache", "cache_gib", "max_new_holes")
    ),
)
