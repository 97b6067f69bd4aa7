"""From built parts to a finished Lightning run: device, callbacks, resume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sana_train.cli.config import RunConfig
from sana_train.cli.preflight import STARTED_S
from sana_train.data.datamodule import ClipDataModule
from sana_train.protocols import ClipSource, Task
from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.callbacks.checkpoints import CheckpointCallback
from sana_train.training.callbacks.progress import ProgressCallback
from sana_train.training.callbacks.provenance import ProvenanceCallback
from sana_train.training.interruption import StopAtStepEnd
from sana_train.training.jsonl import JsonlLogger
from sana_train.training.optimiser import missing_library
from sana_train.training.sharding import Sharding
from sana_train.training.shell import TrainingShell
from sana_train.training.trainer import build_trainer, is_global_zero, is_started_by_srun
from sana_train.training.watchdog import Watchdog
from sana_train.utils.environment import environment


def pick_device(accelerator: str) -> torch.device:
    """The device of this process, where frozen parts and resident clips go; one GPU per rank."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator=gpu, but torch sees no GPU; use auto or cpu")
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def pick_precision(precision: str, device: torch.device) -> str:
    """``auto``: bf16 autocast on a GPU, fp32 on a CPU."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if device.type == "cuda" else "32-true"


def clips_record(source: ClipSource, train: ClipSource) -> dict[str, Any]:
    """What a run's order of clips depends on, beside its configuration.

    Args:
        source: the training clips as they come.
        train: the same as the task reads them.
    """
    fingerprint = getattr(source, "fingerprint", None)  # not every source can say what its clips are
    return {"num_clips": len(train), "fingerprint": None if fingerprint is None else fingerprint()}


def _require_same_clips(checkpoint: Path, clips: dict[str, Any] | None) -> None:
    """Shards that were added, removed or written anew would give every later step other clips.

    Raises:
        ValueError: with what there was and what there is.
    """
    began = ckpt.read_run(checkpoint).get("clips")
    if began != clips:
        raise ValueError(
            f"the training clips are not those with which {checkpoint} was made: {began} then, {clips} now. "
            "Put the former shards back, or start another run with run_id=<a new name>"
        )


class Fit:
    """One process's share of a run.

    Args:
        cfg: the checked configuration.
        task: what is trained.
        train: its clips.
        heldout: the clips it is judged by.
        run_dir: the run's directory, shared by every resume.
        run: what does not change while the run goes on; written into ``run.json`` and every checkpoint.
        console: for the progress bar.
        sharding: of the task's model over the ranks, if it has any.
    """

    def __init__(
        self,
        cfg: RunConfig,
        task: Task,
        train: ClipSource,
        heldout: ClipSource,
        run_dir: Path,
        run: dict[str, Any],
        console: Console,
        sharding: Sharding | None = None,
    ) -> None:
        self.cfg, self.run_dir, self.run, self.console = cfg, run_dir, run, console
        minutes = cfg.trainer.max_minutes
        deadline_s = None if minutes is None else STARTED_S + 60 * minutes
        peers_hear = world_size(cfg) > 1 and is_started_by_srun()
        self.stop = StopAtStepEnd(console.print, deadline_s, peers_hear)
        training = cfg.training
        if (missing := missing_library(training.optimiser)) is not None:
            raise ValueError(missing)  # here, as a start that fails leaves its run id free
        resume_from = ckpt.latest_resumable(run_dir)
        if resume_from is not None and is_global_zero():
            ckpt.require_whole(resume_from)
            _require_same_clips(resume_from, run.get("clips"))
        self.start_step = 0 if resume_from is None else ckpt.step_of(resume_from)
        self.shell = TrainingShell(
            task,
            seed=training.seed,
            optimiser=training.optimiser,
            lr=training.lr,
            warmup_steps=training.warmup_steps,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            clip_norm=training.clip_norm,
            ema_decay=training.ema_decay,
            log_every=cfg.trainer.log_every,
            run_dir=run_dir,
            resume_from=resume_from,
            sharding=sharding,
        )
        self.datamodule = ClipDataModule(
            train,
            heldout,
            global_batch=training.global_batch,
            micro_batch=training.micro_batch,
            seed=training.seed,
            num_workers=cfg.trainer.num_workers,
            start_step=self.start_step,
            window=cfg.data.shuffle_window_shards,
        )

    @property
    def is_done(self) -> bool:
        return self.start_step >= self.cfg.training.max_steps

    def is_over(self, completed: int) -> bool:
        """Whether the run is to be measured and exported: at its last step, or at a limit that says so."""
        is_at_limit = self.stop.was_late and self.cfg.trainer.at_limit == "finish"
        return not self.was_preempted and (completed >= self.cfg.training.max_steps or is_at_limit)

    @property
    def was_preempted(self) -> bool:
        """Whether a signal of the cluster ended training."""
        return self.stop.was_preempted

    def environment(self) -> dict[str, Any]:
        """Versions and hardware, for records."""
        return environment(pick_device(self.cfg.trainer.accelerator))

    def __call__(self, callbacks: Sequence[StepCallback], loggers: Sequence[Any]) -> int:
        """Train up to ``training.max_steps``; returns the steps the run has completed."""
        cfg, training = self.cfg, self.cfg.training
        if self.is_done:
            if is_global_zero():  # of a process that was killed between its last save and its end
                ckpt.remove_leftovers(self.run_dir)
                ckpt.thin_out(self.run_dir, training.keep_full, frozenset(training.milestones))
            return self.start_step
        trainer = build_trainer(
            accelerator=cfg.trainer.accelerator,
            devices=cfg.trainer.devices,
            num_nodes=cfg.trainer.num_nodes,
            precision=pick_precision(training.precision, pick_device(cfg.trainer.accelerator)),
            num_steps=training.max_steps - self.start_step,
            accumulation=self.datamodule.split(world_size(cfg)).accumulation,
            loggers=[JsonlLogger(self.run_dir, self.start_step), *loggers],
            deterministic=cfg.trainer.deterministic,
            strategy=cfg.trainer.strategy,
            stall_s=self._stall_s,
            callbacks=[
                *callbacks,
                CheckpointCallback(
                    training.checkpoint_every, training.milestones, training.keep_full, self.run
                ),
                ProvenanceCallback(self.run),
                ProgressCallback(self.console, training.max_steps),
                *self._watchdog(),
                self.stop,
            ],
        )
        with self.stop:
            trainer.fit(self.shell, datamodule=self.datamodule)
        return self.shell.completed_steps

    @property
    def _stall_s(self) -> float | None:
        """None for one rank, which nobody waits for."""
        return None if world_size(self.cfg) == 1 else self.cfg.trainer.stall_s

    def _watchdog(self) -> list[StepCallback]:
        return [] if self._stall_s is None else [Watchdog(self.run_dir, self._stall_s)]


def world_size(cfg: RunConfig) -> int:
    """Data-parallel ranks."""
    devices = cfg.trainer.devices
    if devices == "auto":
        on_gpu = pick_device(cfg.trainer.accelerator).type == "cuda"
        devices = torch.cuda.device_count() if on_gpu else 1
    return devices * cfg.trainer.num_nodes
