"""Ctrl-C, kill -9, a full disk and NaN: what is on disk is whole, and the run goes on from it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from rank_processes import exit_codes
from torch import Tensor
from training_harness import assert_same_run, launch, make_task, metrics

from sana_train.training import checkpoint as ckpt
from sana_train.training import interruption
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.interruption import StopAtStepEnd
from sana_train.training.shell import TrainingShell
from sana_train.training.tasks.flow import FlowTask

PATIENCE_S = 60.0


# What the child processes run ------------------------------------------------------------------


class SlowSteps(StepCallback):
    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        time.sleep(0.1)


def train_slowly(run_dir: Path) -> None:
    """Exits with 75 where a cluster's signal ended it."""
    torch.set_num_threads(1)
    stop = StopAtStepEnd(lambda text: None)
    launch(run_dir, max_steps=1000, micro_batch=4, callbacks=[SlowSteps()], checkpoint_every=1000, stop=stop)
    os._exit(75 if stop.was_preempted else 0)


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
    try:
        launch(run_dir, max_steps=6, callbacks=[DiskFull()], checkpoint_every=2)
    except OSError as error:
        (run_dir / "error").write_text(str(error))
        raise


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path, number: int, code: int) -> None:
    child = start(train_slowly, tmp_path / "stopped")
    log = tmp_path / "stopped" / "metrics.jsonl"
    wait_until(lambda: log.is_file() and len(log.read_text().splitlines()) >= 2, child)
    os.kill(child.pid, number)
    child.join(PATIENCE_S)
    assert child.exitcode == code
    last = ckpt.latest_resumable(tmp_path / "stopped")
    assert last is not None
    step = ckpt.step_of(last)
    assert metrics(tmp_path / "stopped")[-1]["step"] == step
    resumed = launch(tmp_path / "stopped", max_steps=step + 2, micro_batch=4)
    straight = launch(tmp_path / "straight", max_steps=step + 2, micro_batch=4)
    assert_same_run(straight, resumed)


class BetweenMicroBatches(pl.Callback):
    """Acts at the second of four micro-batches of the third step."""

    def __init__(self, act: Callable[[pl.Trainer], object]) -> None:
        self.act = act

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 9:
            self.act(trainer)


@pytest.mark.parametrize(
    ("act", "completed"),
    [
        pytest.param(lambda trainer: os.kill(os.getpid(), signal.SIGINT), 3, id="Ctrl-C finishes the step"),
        pytest.param(
            lambda trainer: setattr(trainer, "should_stop", True), 2, id="Lightning's clock drops it"
        ),
    ],
)
def test_a_stop_inside_an_accumulated_step(tmp_path: Path, act: Any, completed: int) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    callbacks = [BetweenMicroBatches(act)]
    stopped = launch(tmp_path / "stopped", max_steps=5, micro_batch=2, callbacks=callbacks, log_every=5)
    assert stopped.completed_steps == completed
    assert {number: signal.getsignal(number) for number in before} == before
    assert checkpoints(stopped.run_dir) == [f"step_{completed:07d}"]
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


class SignalAtTheEnd(StepCallback):
    def on_run_end(self, shell: TrainingShell, step: int) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_behind_the_last_step_is_passed_on(tmp_path: Path) -> None:
    """By then nobody looks for it at a step's end; what is measured next may take longer than is left."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        launch(tmp_path / "run", max_steps=2, callbacks=[SignalAtTheEnd()])
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert checkpoints(tmp_path / "run") == ["step_0000002"]


def leave_before_the_others(run_dir: Path, moment: str, delay_s: float) -> None:
    """The second rank has the signal at ``moment``, the first ``delay_s`` after it has come as far itself."""
    is_first = os.environ["RANK"] == "0"

    def signal_me(*_: Any) -> None:
        threading.Timer(delay_s if is_first else 0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        if not is_first:
            time.sleep(PATIENCE_S)

    class InSetUp(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if moment == "set-up":
                signal_me()

    made = interruption.gloo_group

    def gloo_group() -> Any:
        group = made()
        if moment == "meeting":
            signal_me()
        return group

    interruption.gloo_group = gloo_group  # type: ignore[assignment]
    stop = StopAtStepEnd(lambda text: None, peers_hear=True)
    launch(
        run_dir,
        max_steps=10**6,
        micro_batch=4,
        devices=2,
        callbacks=[InSetUp()],
        stop=stop,
    )


@pytest.mark.parametrize(
    ("moment", "delay_s"),
    [
        pytest.param("set-up", 1.0, id="the other waits in a library"),
        pytest.param("meeting", 0.2, id="the other has the signal already"),
        pytest.param("meeting", 1.0, id="the other has the signal later"),
    ],
)
def test_ranks_that_a_signal_finds_apart_die_of_it(tmp_path: Path, moment: str, delay_s: float) -> None:
    codes = exit_codes(leave_before_the_others, tmp_path / "run", moment, delay_s, limit_s=40)
    assert codes == [-signal.SIGUSR1, -signal.SIGUSR1]


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
    said = (tmp_path / "full" / "error").read_text()
    assert re.search(
        r"step_0000004 could not be written \(.*File too large.*\); nothing of it was kept\. .* "
        r"GiB are free there now\. Last one before it: .*step_0000002\. Make room",
        said,
    )
    resumed = launch(tmp_path / "full", max_steps=6)
    assert_same_run(launch(tmp_path / "straight", max_steps=6), resumed)


# On a disk of 8 MB a file grows that leaves room for half of the weights, then for half of the moments.
_ON_A_SMALL_DISK = """
import os, sys
from pathlib import Path
import torch
from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.base import StepCallback
from rank_processes import exit_codes
from training_harness import assert_same_run, launch

disk, other = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)


class Fill(StepCallback):
    def __init__(self, *names):
        self.names = names

    def on_step_end(self, shell, step):
        if step == 3:
            sizes = [(ckpt.checkpoint_path(shell.run_dir, 2) / name).stat().st_size for name in self.names]
            free, room = os.statvfs(disk), sum(sizes) - sizes[-1] // 2
            (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - room))


straight = launch(other, max_steps=6)
weights = ("model.safetensors", "ema.safetensors")
for name, files in (("one", weights[:1]), ("two", (*weights, "training_state/__0_0.distcp"))):
    try:
        launch(disk / name, max_steps=6, callbacks=[Fill(*files)], checkpoint_every=2)
    except OSError as error:
        print(error)
    print(sorted(os.listdir(disk / name / "checkpoints")))
    (disk / "ballast").unlink()
    assert_same_run(straight, launch(disk / name, max_steps=6))
"""
_ALONE = ["unshare", "--map-root-user", "--mount"]
_MAY_MOUNT = (
    shutil.which("unshare") and subprocess.run([*_ALONE, "true"], capture_output=True).returncode == 0
)


@pytest.mark.skipif(not _MAY_MOUNT, reason="needs a mount namespace of its own")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f'mount -t tmpfs -o size=8m none "{disk}" && exec "$0" -c "$@"'
    command = [*_ALONE, "sh", "-c", mounted, sys.executable, _ON_A_SMALL_DISK, disk, tmp_path / "straight"]
    path = os.pathsep.join(sys.path)
    child = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    at_weights, kept, at_moments, kept_too = child.stdout.strip().splitlines()
    assert kept == kept_too == "['step_0000002']"
    assert re.search(r"step_0000004 could not be written \(.*No space left on device", at_weights)
    assert re.search(r"step_0000004 could not be written \(.*\. It takes 0\.001 GiB, 0\.00", at_moments)


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
