"""A callback that counts optimiser steps of the run, not Lightning's batches of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl

if TYPE_CHECKING:
    from sana_train.training.shell import TrainingShell


class StepCallback(pl.Callback):
    """Hooks of the training shell. ``step`` is the number of optimiser steps the *run* completed.

    Slow work goes inside ``with shell.paused():``, or throughput counts it as training.
    """

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        """Before the first step of this process; ``step`` is 0 or where the run resumes."""

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        """After every optimiser step."""

    def on_run_end(self, shell: TrainingShell, step: int) -> None:
        """After the last step, on a normal end or on Ctrl-C."""
