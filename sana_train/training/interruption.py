"""What ends a run in good order: Ctrl-C, a deadline, and the signals that a cluster sends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from sana_train.training.callbacks.base import StepCallback
from sana_train.training.shell import TrainingShell

# What SLURM sends on preemption, and what slurm/train.sbatch asks for before the time limit.
PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)


class StopAtStepEnd(StepCallback):
    """Inside the block the first Ctrl-C, SIGTERM or SIGUSR1 ends the run after the present step.

    A second Ctrl-C ends it at once. Must also be among the trainer's callbacks, as the last: a signal
    reaches the ranks in different steps, so at each step's end they agree on whether to stop.

    Args:
        say: tells the user.
        deadline_s: on ``time.monotonic``'s clock; the step that ends after it is the last.
    """

    def __init__(self, say: Callable[[str], object], deadline_s: float | None = None) -> None:
        self.say = say
        self.deadline_s = deadline_s
        self.was_preempted = False
        self.was_late = False
        self._received: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        self._previous = {
            number: signal.signal(number, self._handle) for number in (signal.SIGINT, *PREEMPTION)
        }

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning put a handler of its own around SIGTERM, which ends the process inside a step.
        signal.signal(signal.SIGTERM, self._handle)

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        any_rank = shell.trainer.strategy.reduce_boolean_decision
        is_late = self.deadline_s is not None and time.monotonic() >= self.deadline_s
        if any_rank(self._received is not None or is_late, all=False):
            shell.trainer.should_stop = True
            self.was_preempted = any_rank(self._received in PREEMPTION, all=False)
            self.was_late = any_rank(is_late, all=False)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.say("stopping after this step and saving; Ctrl-C again to stop at once")
            signal.signal(signal.SIGINT, signal.default_int_handler)
        else:
            self.say(f"{signal.Signals(number).name}: stopping after this step and saving")
        self._received = number
