"""A job of several ranks ends, with the stacks of all of them, when one of them dies or stalls.

A rank that waits for another waits inside a library, where no Python code runs: so each has a process beside
it (``stall_monitor.py``), which asks it for its stacks by SIGQUIT and then kills it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as pl

from sana_train.training import stall_monitor
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.shell import TrainingShell


class Watchdog(StepCallback):
    """Tells this rank's monitor of every micro-batch. Stacks come into ``<run>/stacks/<start>/rank_*.txt``.

    A rank that dies is noticed within seconds, one that stalls after ``stall_s``; the job ends within ten
    seconds of that. Evaluations and saves are no progress, so ``stall_s`` must be longer than they take.

    Args:
        run_dir: on a file system that all ranks share.
        stall_s: seconds.
    """

    def __init__(self, run_dir: Path, stall_s: float) -> None:
        self.run_dir, self.stall_s = run_dir, stall_s
        self._monitor: subprocess.Popen[bytes] | None = None
        self._stacks: IO[str] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        folder = Path(trainer.strategy.broadcast(str(self.run_dir / "stacks" / started)))
        folder.mkdir(parents=True, exist_ok=True)
        rank = trainer.global_rank
        self._stacks = stall_monitor.stacks_of(folder, rank).open("a")  # as the monitor does
        faulthandler.register(signal.SIGQUIT, file=self._stacks, all_threads=True)
        options = ["--process", str(os.getpid()), "--rank", str(rank)]
        options += ["--folder", str(folder), "--stall-s", str(self.stall_s)]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stall_monitor.OF_THE_RANK)
        self._monitor = subprocess.Popen(
            [sys.executable, "-I", "-S", stall_monitor.__file__, *options],
            stdin=subprocess.PIPE,
            start_new_session=True,  # signals to the rank's group are none of its business
        )
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._monitor.stdin is not None
        os.set_blocking(self._monitor.stdin.fileno(), False)

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        self._tell(stall_monitor.PROGRESS)

    def on_train_batch_end(self, *_: Any) -> None:
        self._tell(stall_monitor.PROGRESS)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._stacks is None or isinstance(exception, KeyboardInterrupt):  # all ranks hear Ctrl-C
            self._leave()
            return
        self._stacks.writelines(traceback.format_exception(exception))
        self._stacks.flush()
        self._tell(stall_monitor.FAILED)

    def _tell(self, what: bytes) -> None:
        if self._monitor is None or self._monitor.stdin is None:
            return
        # Full: the monitor is stopped and has enough to read. Broken: it was killed. Training goes on.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._monitor.stdin.fileno(), what)

    def _leave(self) -> None:
        """End the watch, and take back what says nothing."""
        self._tell(stall_monitor.GOODBYE)
        if self._monitor is not None and self._stacks is not None:
            self._monitor.communicate()
            faulthandler.unregister(signal.SIGQUIT)
            self._stacks.close()
            stall_monitor.take_back(Path(self._stacks.name))
        self._monitor = self._stacks = None
