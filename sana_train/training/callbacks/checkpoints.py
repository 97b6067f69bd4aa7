"""When checkpoints are written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch

from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.shell import TrainingShell


class CheckpointCallback(StepCallback):
    """Full checkpoints at an interval and at the end, weights alone at milestones.

    Logs ``speed/save_stall_s`` at each: for how many seconds the slowest rank stood still for it.

    Args:
        every: optimiser steps between full checkpoints.
        milestones: steps whose weights are kept for good; 0 is before training.
        keep_full: how many full checkpoints stay.
        run: written into each ``run.json``.
    """

    def __init__(self, every: int, milestones: Sequence[int], keep_full: int, run: dict[str, Any]) -> None:
        if every < 1 or keep_full < 1:
            raise ValueError(
                f"training.checkpoint_every={every} and training.keep_full={keep_full} must both be at "
                "least 1: without a full checkpoint a run cannot resume"
            )
        self.every, self.keep_full, self.run = every, keep_full, run
        self.milestones = frozenset(milestones)
        self._last_full = 0

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        self._last_full = step  # a run resumes from full checkpoints only
        if shell.trainer.is_global_zero:
            ckpt.remove_leftovers(shell.run_dir)
        if step == 0 and 0 in self.milestones:
            self._save(shell, 0, with_training_state=False)

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        is_full = step % self.every == 0
        if is_full or step in self.milestones:
            self._save(shell, step, with_training_state=is_full)

    def on_run_end(self, shell: TrainingShell, step: int) -> None:
        if step != self._last_full:
            self._save(shell, step, with_training_state=True)
        shell.finish_saving()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        # Every rank sees in the same step that a loss is not finite; what is being written is from before.
        if isinstance(exception, FloatingPointError):
            pl_module.finish_saving()

    def _save(self, shell: TrainingShell, step: int, *, with_training_state: bool) -> None:
        thin_out = partial(ckpt.thin_out, shell.run_dir, self.keep_full, self.milestones)
        paused_s = shell.paused_s
        with shell.paused():
            shell.save_checkpoint(self.run, with_training_state=with_training_state, published=thin_out)
            if step in self.milestones:
                shell.note(f"milestone/{step}", str(ckpt.checkpoint_path(shell.run_dir, step)))
        mine = torch.tensor(shell.paused_s - paused_s, device=shell.device)
        with shell.paused():  # for the slowest rank, as the next step would wait for it
            stall = shell.trainer.strategy.reduce(mine, reduce_op="max")
            shell.report({"speed/save_stall_s": float(stall)})
        if with_training_state:
            self._last_full = step
