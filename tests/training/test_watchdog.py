"""A rank that is killed, stopped or fails ends the job in time, with a stack of each that can give one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
from rank_processes import exit_codes
from training_harness import launch

from sana_train.cli.failure import failure_recorded
from sana_train.cli.run_id import IDENTITY_FILE
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.interruption import StopAtStepEnd
from sana_train.training.shell import TrainingShell
from sana_train.training.stall_monitor import FAILURE_FILE
from sana_train.training.watchdog import Watchdog

STALL_S = 4.0
PROMISED_S = 10.0  # from the moment that a rank counts as stalled, or dies, to the end of the job


class Mishap(StepCallback):
    """One rank stops being any use after step 3."""

    def __init__(self, kind: str, rank: int) -> None:
        self.kind, self.rank = kind, rank

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step != 3 or shell.trainer.global_rank != self.rank:
            return
        (shell.run_dir / "happened").touch()
        self.fall_out(shell)

    def fall_out(self, shell: TrainingShell) -> None:
        if self.kind == "failed":
            raise RuntimeError("this rank's own bug")
        if self.kind == "signalled":  # as SLURM sends its signal to every process of a step
            (watchdog,) = [each for each in shell.trainer.callbacks if isinstance(each, Watchdog)]  # type: ignore[attr-defined]
            assert watchdog._monitor is not None
            for number in (signal.SIGUSR1, signal.SIGTERM):
                os.kill(watchdog._monitor.pid, number)
        if self.kind in ("stopped", "killed"):
            os.kill(os.getpid(), {"stopped": signal.SIGSTOP, "killed": signal.SIGKILL}[self.kind])
        time.sleep(
            100
        )  # a process that stops itself comes a few lines further, and to write its stack it goes on


def train_until(run_dir: Path, kind: str, rank: int) -> None:
    run_dir.mkdir(exist_ok=True)
    (run_dir / IDENTITY_FILE).touch()  # as a run that has claimed its directory
    with failure_recorded(run_dir):
        launch(
            run_dir,
            max_steps=10**6,
            micro_batch=4,
            devices=2,
            callbacks=[Mishap(kind, rank)],
            checkpoint_every=10**6,
            stall_s=STALL_S,
        )


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        ("stopped", 1),
        ("stopped", 0),
        ("killed", 1),
        ("killed", 0),
        ("failed", 1),
        ("asleep", 0),
        ("signalled", 1),
    ],
)
def test_the_job_ends_in_time_with_every_stack(kind: str, rank: int, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    codes = exit_codes(train_until, run_dir, kind, rank)
    took_s = time.time() - (run_dir / "happened").stat().st_mtime
    assert None not in codes
    assert 0 not in codes
    has_stalled = kind in ("stopped", "asleep", "signalled")
    assert took_s < PROMISED_S + (STALL_S if has_stalled else 0.0)
    # Monitors may write a little longer than the ranks live.
    (folder,) = run_dir.glob("stacks/*")
    wait_for(folder / f"rank_{1 - rank:04d}.txt", "training_epoch_loop.py")  # where it waited
    where = {"killed": "ended without a word", "failed": "this rank's own bug"}
    wait_for(folder / f"rank_{rank:04d}.txt", where.get(kind, "in fall_out"))
    # Whoever waits for a rank that stalls makes no progress either, and may be the first to say so.
    cause = {"killed": f"rank {rank} (process ", "failed": "this rank's own bug"}
    wait_for(run_dir / FAILURE_FILE, cause.get(kind, "without progress"))
    if has_stalled:
        wait_for(folder, f"ended after {STALL_S:g} s without progress")
    assert codes[rank] == (1 if kind == "failed" else -signal.SIGKILL)


def wait_for(place: Path, words: str) -> None:
    """Until the file, or any in the folder, holds ``words``."""
    deadline = time.monotonic() + PROMISED_S
    texts: list[str] = []
    while time.monotonic() < deadline:
        texts = [file.read_text() for file in ([place] if place.is_file() else place.glob("*.txt"))]
        if any(words in text for text in texts):
            return
        time.sleep(0.1)
    raise AssertionError(f"{words!r} is not in {texts}")


class SignalledInSetUp(pl.Callback):
    """The second rank and its monitor get the signal before the first step, the others 3 s later."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (watchdog,) = [each for each in trainer.callbacks if isinstance(each, Watchdog)]  # type: ignore[attr-defined]
        assert watchdog._monitor is not None
        time.sleep(3.0 * (trainer.global_rank == 0))
        for process in (watchdog._monitor.pid, os.getpid()):
            os.kill(process, signal.SIGUSR1)


def train_until_signalled(run_dir: Path) -> None:
    stop = StopAtStepEnd(lambda text: None, peers_hear=True)
    launch(
        run_dir,
        max_steps=10**6,
        micro_batch=4,
        devices=2,
        callbacks=[SignalledInSetUp()],
        stall_s=STALL_S,
        stop=stop,
    )


def test_a_rank_that_a_signal_ends_before_its_first_step_was_not_killed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    codes = exit_codes(train_until_signalled, run_dir)
    assert codes == [-signal.SIGUSR1, -signal.SIGUSR1]
    deadline = time.monotonic() + PROMISED_S
    while (run_dir / "stacks").exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # monitors live a little longer
    assert not (run_dir / "stacks").exists()
    assert not (run_dir / FAILURE_FILE).exists()


def train_well(run_dir: Path) -> None:
    launch(run_dir, max_steps=3, micro_batch=4, devices=2, stall_s=STALL_S)


def test_a_run_without_mishap_leaves_nothing_of_it(tmp_path: Path) -> None:
    assert exit_codes(train_well, tmp_path / "run") == [0, 0]
    assert not (tmp_path / "run" / "stacks").exists()
