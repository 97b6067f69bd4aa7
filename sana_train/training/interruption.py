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
_UNDER_WAY_S = 10.0  # by which one rank may get a signal later than another


class StopAtStepEnd(StepCallback):
    """Inside the block the first Ctrl-C, SIGTERM or SIGUSR1 ends the run after the present step.

    A second Ctrl-C ends it at once. An error of a save in the background is raised after the step in which it
    is known. Must also be among the trainer's callbacks, as the last: a signal reaches the ranks in different
    steps, so at each step's end they agree on whether to stop.

    Args:
        say: tells the user.
        deadline_s: on ``time.monotonic``'s clock; the step that ends after it is the last.
        peers_hear: whether other ranks get the same SIGTERM or SIGUSR1, as srun sends it. Then a rank dies of
            it until all have met for their first step, with nothing to save: who waits inside a library for a
            rank that has left runs no handler of Python's. slurm/job.sh takes it for what it is.
    """

    def __init__(
        self, say: Callable[[str], object], deadline_s: float | None = None, peers_hear: bool = False
    ) -> None:
        self.say = say
        self.deadline_s = deadline_s
        self.peers_hear = peers_hear
        self.was_preempted = False
        self.was_late = False
        self._received: int | None = None
        self._group: Any = (
            None  # of the ranks' CPUs: to ask one another in every step must not wait for a GPU
        )
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, *PREEMPTION)}
        signal.signal(signal.SIGINT, self._handle)
        _listen(signal.SIG_DFL if self.peers_hear else self._handle)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if kind is None and not self.was_preempted:  # what came behind the last step is not lost
            self._pass_on()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._group = gloo_group() if trainer.world_size > 1 else None
        if self.peers_hear:
            _listen(self._handle)
            self._meet()

    def _meet(self) -> None:
        """Behind this every rank knows that all of them stop at a step's end."""
        try:
            dist.barrier(group=self._group)
        except RuntimeError:
            # One has died: of a signal that this one has, or gets soon, or of something else.
            _listen(signal.SIG_DFL)
            self._pass_on()
            time.sleep(_UNDER_WAY_S)
            raise

    def _pass_on(self) -> None:
        """Give a signal of the cluster that has come to whoever listens now."""
        if self._received is not None and self._received in PREEMPTION:
            signal.raise_signal(self._received)

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


def _listen(handler: Any) -> None:
    for number in PREEMPTION:
        signal.signal(number, handler)
