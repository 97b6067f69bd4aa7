"""A tiny flow task on random latents, run as the command line runs one. Importable by child processes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from sana_train.data.datamodule import ClipDataModule
from sana_train.data.resident import RaggedText, ResidentClips
from sana_train.flow.time_sampling import LogitNormal
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.checkpoints import CheckpointCallback
from sana_train.training.callbacks.provenance import ProvenanceCallback
from sana_train.training.interruption import StopAtStepEnd
from sana_train.training.jsonl import JsonlLogger, read_jsonl
from sana_train.training.optimiser import OptimiserName
from sana_train.training.optimiser_state import optimiser_state
from sana_train.training.sharding import Sharding, groups_of
from sana_train.training.shell import TrainingShell
from sana_train.training.tasks.flow import FlowTask
from sana_train.training.trainer import StrategyName, build_trainer
from sana_train.training.watchdog import Watchdog
from sana_train.types import LatentSpec
from sana_train.utils.shards import write_part

SPEC = LatentSpec(channels=4, stride_t=8, stride_h=32, stride_w=32)
CONTEXT_DIM, MAX_TOKENS = 6, 5
NEW_LAYERS = ("patch_embed.", "final_layer.linear.")


class ScaledSpace(nn.Module):
    """The frozen autoencoder of a run on latents: it only normalises."""

    spec = SPEC

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def normalise(self, latents: Tensor) -> Tensor:
        return latents * self.scale


class WordTable(nn.Module):
    """A frozen text encoder with weights; batches here bring their context along."""

    dim, max_tokens = CONTEXT_DIM, MAX_TOKENS

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, CONTEXT_DIM)


def make_model(depth: int = 1) -> SanaVideoDiT:
    torch.manual_seed(0)
    return SanaVideoDiT(
        latent_channels=4,
        patch_size=[1, 1, 1],
        depth=depth,
        width=48,
        num_heads=2,
        cross_num_heads=2,
        mlp_ratio=2.0,
        caption_dim=CONTEXT_DIM,
        max_tokens=MAX_TOKENS,
    )


def make_clips(
    num_clips: int = 20, holes: Sequence[int] = (), garbage: float = 1.0, device: str = "cpu"
) -> ResidentClips:
    """Random latents and captions; ``holes`` have weight 0 and latents of size ``garbage``."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(num_clips, 4, 2, 3, 3, generator=generator)
    weight = torch.ones(num_clips)
    weight[list(holes)] = 0.0
    latents[list(holes)] = garbage
    lengths = torch.arange(num_clips) % MAX_TOKENS + 1
    tokens = torch.randn(int(lengths.sum()), CONTEXT_DIM, generator=generator)
    text = RaggedText(tokens.to(device), lengths.to(device), MAX_TOKENS)
    return ResidentClips(latents.to(device), text, [f"clip {i}" for i in range(num_clips)], {}, weight, SPEC)


def make_task(
    kept_start_step: int | None = None,
    kind: type[FlowTask] = FlowTask,
    compile_mode: str = "none",
    depth: int = 1,
) -> FlowTask:
    """A task that trains all, or the new layers at once and all others from ``kept_start_step``."""
    model = make_model(depth)
    named = list(model.named_parameters())
    groups: list[dict[str, Any]] = [{"name": "all", "params": [p for _, p in named]}]
    if kept_start_step is not None:
        kept = [p for name, p in named if not name.startswith(NEW_LAYERS)]
        groups = [
            {"name": "new", "params": [p for name, p in named if name.startswith(NEW_LAYERS)]},
            {"name": "kept", "params": kept, "lr_scale": 0.5, "start_step": kept_start_step},
        ]
    return kind(model, groups, ScaledSpace(), WordTable(), LogitNormal(), 0.1, compile_mode)  # type: ignore[arg-type]


def fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Write a whole state into a model of which each rank holds a part."""
    for name, value in model.state_dict().items():
        write_part(value, state[name])


def launch(
    run_dir: Path,
    *,
    max_steps: int,
    task: FlowTask | None = None,
    clips: Any = None,
    micro_batch: int = 8,
    callbacks: Sequence[pl.Callback] = (),
    checkpoint_every: int = 3,
    milestones: Sequence[int] = (),
    log_every: int = 1,
    optimiser: OptimiserName = "adamw",
    lr: float = 1e-2,
    warmup_steps: int = 2,
    clip_norm: float = 1.0,
    devices: int = 1,
    stop: StopAtStepEnd | None = None,
    accelerator: str = "cpu",
    precision: str = "32-true",
    deterministic: bool = False,
    strategy: StrategyName = "ddp",
    ranks_per_copy: int | None = None,
    stall_s: float | None = None,
) -> TrainingShell:
    """Train from the run's last checkpoint up to ``max_steps``, in steps of 8 clips."""
    resume_from = ckpt.latest_resumable(run_dir)
    if resume_from is not None:
        ckpt.require_whole(resume_from)
    start_step = 0 if resume_from is None else ckpt.step_of(resume_from)
    task = make_task() if task is None else task
    clips = make_clips(device="cuda" if accelerator == "gpu" else "cpu") if clips is None else clips
    sharding = None
    if strategy != "ddp":
        whole, empty = task.model, copy.deepcopy(task.model).to("meta")
        groups = groups_of(empty, whole, task.parameter_groups())
        task.model, task.parameter_groups = empty, lambda: groups  # type: ignore[method-assign]
        sharding = Sharding(partial(fill, state=whole.state_dict()), ranks_per_copy)
    shell = TrainingShell(
        task,
        seed=3,
        optimiser=optimiser,
        lr=lr,
        warmup_steps=warmup_steps,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.01,
        clip_norm=clip_norm,
        ema_decay=0.9,
        log_every=log_every,
        run_dir=run_dir,
        resume_from=resume_from,
        sharding=sharding,
    )
    data = ClipDataModule(clips, clips, 8, micro_batch, seed=3, start_step=start_step)
    run = {"run_id": run_dir.name}
    stop = StopAtStepEnd(lambda text: None) if stop is None else stop
    trainer = build_trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=1,
        precision=precision,
        num_steps=max_steps - start_step,
        accumulation=data.split(devices).accumulation,
        loggers=[JsonlLogger(run_dir, start_step)],
        deterministic=deterministic,
        strategy=strategy,
        stall_s=stall_s,
        callbacks=[
            *callbacks,  # type: ignore[list-item]
            CheckpointCallback(checkpoint_every, milestones, 2, run),
            ProvenanceCallback(run),
            *([] if stall_s is None else [Watchdog(run_dir, stall_s)]),
            stop,
        ],
    )
    with stop:
        trainer.fit(shell, datamodule=data)
    return shell


def final_state(shell: TrainingShell) -> dict[str, Tensor]:
    """Everything a resumed run must have in common with an uninterrupted one."""
    assert shell.ema is not None
    return {
        **{f"model/{name}": value for name, value in shell.model.state_dict().items()},
        **{f"ema/{name}": value for name, value in shell.ema.state_dict().items()},
        **{
            f"optimiser/{name}": value for name, value in optimiser_state(shell.trainer.optimizers[0]).items()
        },
    }


def assert_same_run(one: TrainingShell, other: TrainingShell) -> None:
    """Bit for bit: weights, averages, moments and every logged number."""
    mine, theirs = final_state(one), final_state(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert metrics(one.run_dir) == metrics(other.run_dir)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """What was logged, without the lines of what a clock tells: the stall of each save."""
    lines = read_jsonl(run_dir / "metrics.jsonl")
    return [line for line in lines if not any(name.startswith("speed/") for name in line)]
