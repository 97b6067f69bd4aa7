"""What ends a run in good order: Ctrl-C, a deadline, and the signals that a cluster sends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from sana_train.training.callbacks.base import StepCallback
from sana_train.training.gloo import gloo_group
from sana_train.training.shell import TrainingShell

# What SLURM sends on preemption, and what slurm/train.sbatch asks for before the time limit.
PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)


class StopAtStepEnd(StepCallback):
    """Inside the block the first Ctrl-C, SIGTERM or SIGUSR1 ends the run after the present step.

    A second Ctrl-C ends it at once. An error of a save in the background is raised after the step in which it
    is known. Must also be among the trainer's callbacks, as the last: a signal reaches the ranks in different
    steps, so at each step's end they agree on whether to stop.

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
        self._group: Any = (
            None  # of the ranks' CPUs: to ask one another in every step must not wait for a GPU
        )
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
        self._group = gloo_group() if trainer.world_size > 1 else None

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        is_late = self.deadline_s is not None and time.monotonic() >= self.deadline_s
        mine = [self._received is not None, self._received in PREEMPTION, is_late, shell.save_has_failed]
        said = torch.tensor(mine, dtype=torch.uint8)
        if self._group is not None:
            dist.all_reduce(said, dist.ReduceOp.MAX, group=self._group)
        is_signalled, is_preempted, is_late, save_has_failed = said.bool().tolist()
        if save_has_failed:
            shell.finish_saving()  # which raises, on every rank: hours of training must not go unsaved
        if is_signalled or is_late:
            shell.trainer.should_stop = True
            self.was_preempted, self.was_late = is_preempted, is_late

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.say("stopping after this step and saving; Ctrl-C again to stop at once")
            signal.signal(signal.SIGINT, signal.default_int_handler)
        else:
            self.say(f"{signal.Signals(number).name}: stopping after this step and saving")
        self._received = number
