"""Ctrl-C, kill -9, a full disk and NaN: what is on disk is whole, and the run goes on from it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from training_harness import assert_same_run, launch, make_task, metrics

from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.shell import TrainingShell
from sana_train.training.tasks.flow import FlowTask

PATIENCE_S = 60.0


# What the child processes run ------------------------------------------------------------------


class SlowSteps(StepCallback):
    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        time.sleep(0.1)


def train_slowly(run_dir: Path) -> None:
    torch.set_num_threads(1)
    launch(run_dir, max_steps=1000, micro_batch=4, callbacks=[SlowSteps()], checkpoint_every=1000)


def hang_in_second_save(run_dir: Path) -> None:
    """Saves at step 2, then stops for ever between two files of the checkpoint of step 4."""
    torch.set_num_threads(1)
    write = ckpt.save_file

    def save_file(state: Any, path: Path) -> None:
        write(state, path)
        if "step_0000004" in str(path):
            (run_dir / "half-way").touch()
            time.sleep(PATIENCE_S)

    ckpt.save_file = save_file  # type: ignore[assignment]
    launch(run_dir, max_steps=6, checkpoint_every=2)


class DiskFull(StepCallback):
    """From step 3 on no file may grow over 20 kB, as on a disk with that much left."""

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def fill_the_disk(run_dir: Path) -> None:
    torch.set_num_threads(1)
    launch(run_dir, max_steps=6, callbacks=[DiskFull()], checkpoint_every=2)


# Tests -----------------------------------------------------------------------------------------

_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["lightning.pytorch", "torch.distributed.checkpoint", "training_harness"])


def start(target: Callable[[Path], None], run_dir: Path) -> Any:
    child = _children.Process(target=target, args=(run_dir,), daemon=True)
    child.start()
    return child


def wait_until(condition: Callable[[], bool], child: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert child.is_alive(), "the child ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(run_dir: Path) -> list[str]:
    """Everything in the folder, hidden or not."""
    return sorted(os.listdir(run_dir / "checkpoints"))


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    child = start(train_slowly, tmp_path / "stopped")
    log = tmp_path / "stopped" / "metrics.jsonl"
    wait_until(lambda: log.is_file() and len(log.read_text().splitlines()) >= 2, child)
    os.kill(child.pid, signal.SIGINT)
    child.join(PATIENCE_S)
    assert child.exitcode == 0
    last = ckpt.latest_resumable(tmp_path / "stopped")
    assert last is not None
    step = ckpt.step_of(last)
    assert metrics(tmp_path / "stopped")[-1]["step"] == step
    resumed = launch(tmp_path / "stopped", max_steps=step + 2, micro_batch=4)
    straight = launch(tmp_path / "straight", max_steps=step + 2, micro_batch=4)
    assert_same_run(straight, resumed)


class CtrlCBetweenMicroBatches(pl.Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 9:  # the second of four micro-batches of the third step
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_inside_an_accumulated_step_drops_that_step(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    callbacks = [CtrlCBetweenMicroBatches()]
    stopped = launch(tmp_path / "stopped", max_steps=5, micro_batch=2, callbacks=callbacks, log_every=5)
    assert stopped.completed_steps == 2
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoints(stopped.run_dir) == ["step_0000002"]
    resumed = launch(tmp_path / "stopped", max_steps=5, micro_batch=2, log_every=5)
    straight = launch(tmp_path / "straight", max_steps=5, micro_batch=2, log_every=5)
    assert_same_run(straight, resumed)


class CtrlCTwice(StepCallback):
    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


def test_the_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        launch(tmp_path / "run", max_steps=9, callbacks=[CtrlCTwice()])
    assert stopped.value.code == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoints(tmp_path / "run") == ["step_0000003"]


def test_kill_during_a_save_loses_only_what_came_after_the_last_one(tmp_path: Path) -> None:
    child = start(hang_in_second_save, tmp_path / "killed")
    wait_until((tmp_path / "killed" / "half-way").is_file, child)
    os.kill(child.pid, signal.SIGKILL)
    child.join(PATIENCE_S)
    visible = [path.name for path in ckpt.list_checkpoints(tmp_path / "killed")]
    assert visible == ["step_0000002"]
    assert len(checkpoints(tmp_path / "killed")) == 2  # the other is the hidden half
    assert metrics(tmp_path / "killed")[-1]["step"] == 4
    resumed = launch(tmp_path / "killed", max_steps=6)
    assert_same_run(launch(tmp_path / "straight", max_steps=6), resumed)
    assert checkpoints(tmp_path / "killed") == ["step_0000003", "step_0000006"]


def test_a_full_disk_publishes_nothing_half_written(tmp_path: Path) -> None:
    child = start(fill_the_disk, tmp_path / "full")
    child.join(PATIENCE_S)
    assert child.exitcode == 1
    assert checkpoints(tmp_path / "full") == ["step_0000002"]
    resumed = launch(tmp_path / "full", max_steps=6)
    assert_same_run(launch(tmp_path / "straight", max_steps=6), resumed)


class NanFromStepFive(FlowTask):
    def step(self, batch: Any, rng: Any) -> dict[str, Tensor]:
        losses = super().step(batch, rng)
        return {"loss": losses["loss"] * torch.where(rng.ordinals >= 4 * 8, torch.nan, 1.0)}


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_nan_loss_stops_the_run_and_is_never_saved(tmp_path: Path, log_every: int) -> None:
    expected = r"loss became nan by step 5; nothing was saved.*step_0000004.*smaller training\.lr"
    task = make_task(kind=NanFromStepFive)
    with pytest.raises(FloatingPointError, match=expected):
        launch(tmp_path / "run", max_steps=9, task=task, checkpoint_every=1, log_every=log_every)
    assert checkpoints(tmp_path / "run") == ["step_0000003", "step_0000004"]
    for name in ("model", "ema"):
        last = ckpt.load_weights(ckpt.checkpoint_path(tmp_path / "run", 4), prefer_ema=name == "ema")
        assert all(bool(value.isfinite().all()) for value in last.values())
    assert launch(tmp_path / "run", max_steps=5).completed_steps == 5


class SpoilWeight(StepCallback):
    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step == 2:
            next(shell.model.parameters()).data.flatten()[0] = torch.inf


def test_a_broken_weight_is_never_saved(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"a weight became NaN or infinite by step 2.*none yet"):
        launch(tmp_path / "run", max_steps=4, callbacks=[SpoilWeight()], checkpoint_every=2)
    assert ckpt.list_checkpoints(tmp_path / "run") == []


def test_errors_of_a_save_name_their_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    launch(tmp_path / "run", max_steps=2)
    monkeypatch.setattr(ckpt.dcp, "save", no_space)
    with pytest.raises(OSError, match="No space left"):
        launch(tmp_path / "run", max_steps=4)
    assert checkpoints(tmp_path / "run") == ["step_0000002"]
