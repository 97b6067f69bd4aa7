"""Judges both stages at milestones of training."""

from __future__ import annotations

from sana_train.training.callbacks.convergence import ConvergenceCallback
from sana_train.training.shell import TrainingShell


class TwoStageCallback(ConvergenceCallback):
    """The same at the given steps alone: at step 0 only if it is one of them."""

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        if step in self.grid:
            super().on_run_start(shell, step)
