"""Checkpoints that ranks write together while they train: whole, the same as one process's, or not there."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_processes import exit_codes
from training_harness import fill, launch, make_model, metrics

from sana_train.training import background_save
from sana_train.training import checkpoint as ckpt
from sana_train.training.background_save import BackgroundSaver
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.jsonl import read_jsonl
from sana_train.training.sharding import Sharding, sharded_copy
from sana_train.training.shell import TrainingShell

SAVES = (1, 2, 3)


def known_state(shift: float) -> dict[str, torch.Tensor]:
    return {name: value.float() + shift for name, value in make_model().state_dict().items()}


def save_in_shards(run_dir: Path) -> None:
    """Known states; each is changed as soon as it is handed over, as training changes it."""
    dist.init_process_group("gloo")
    empty = make_model().to("meta")
    model, average = (
        sharded_copy(empty, Sharding(lambda model: None), torch.device("cpu"), use_bf16=False) for _ in "12"
    )
    saver = BackgroundSaver()
    for step in SAVES:
        fill(model, known_state(step))
        fill(average, known_state(step + 0.5))
        target = ckpt.checkpoint_path(run_dir, step)
        saver.save(target, model.state_dict(), average.state_dict(), None, {"step": step}, lambda: None)
        for parameter in (*model.parameters(), *average.parameters()):
            parameter.detach().zero_()
    saver.wait()


def test_files_are_to_the_byte_what_one_process_writes(tmp_path: Path) -> None:
    assert exit_codes(save_in_shards, tmp_path / "two", limit_s=200) == [0, 0]
    for step in SAVES:
        one, two = (ckpt.checkpoint_path(tmp_path / name, step) for name in ("one", "two"))
        ckpt.save_checkpoint(one, known_state(step), known_state(step + 0.5), None, {"step": step})
        names = sorted(path.name for path in one.iterdir())
        assert sorted(path.name for path in two.iterdir()) == names
        for name in names:
            assert (one / name).read_bytes() == (two / name).read_bytes(), (step, name)


def train_and_go_on(run_dir: Path, num_ranks: int, accelerator: str) -> None:
    """Six steps, a save after each; then the last step once more, from the fifth save."""
    how: dict[str, Any] = {
        "max_steps": 6,
        "devices": num_ranks,
        "micro_batch": 8 // num_ranks,
        "accelerator": accelerator,
        "strategy": "fsdp2",
        "checkpoint_every": 1,
    }
    straight, resumed = run_dir / "straight", run_dir / "resumed"
    launch(straight, **how)
    if dist.get_rank() == 0:
        shutil.copytree(straight, resumed)
        shutil.rmtree(ckpt.checkpoint_path(resumed, 6))
    dist.barrier()
    assert launch(resumed, **how).resume_from == ckpt.checkpoint_path(resumed, 5)


def test_a_run_goes_on_from_the_last_of_many_saves(tmp_path: Path) -> None:
    """Bit for bit; each save but the first copies into memory that held the one before."""
    assert exit_codes(train_and_go_on, tmp_path, 2, "cpu", limit_s=200) == [0, 0]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert metrics(resumed) == metrics(straight)
    for name in ("model.safetensors", "ema.safetensors"):
        last = [ckpt.checkpoint_path(run_dir, 6) / name for run_dir in (straight, resumed)]
        assert last[0].read_bytes() == last[1].read_bytes(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_so_does_a_run_on_a_gpu(tmp_path: Path) -> None:
    assert exit_codes(train_and_go_on, tmp_path, 1, "gpu", num=1, limit_s=200) == [0]
    straight, resumed = (
        [line["train/loss"] for line in metrics(tmp_path / name)] for name in ("straight", "resumed")
    )
    assert resumed == pytest.approx(straight, rel=1e-4)


SLOW_S = 0.6  # of a save on the second rank alone, in a run whose first rank needs a tenth of it


class HeldBack(StepCallback):
    """The save of step 2 is not written before step 4 has been trained."""

    def __init__(self) -> None:
        self.is_free = threading.Event()
        self.save = background_save.put_together

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        def held_back(*arguments: Any) -> Any:
            assert self.is_free.wait(30)
            return self.save(*arguments)

        background_save.put_together = held_back

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step == 4:
            assert not ckpt.list_checkpoints(shell.run_dir)
            self.is_free.set()


def train_while_saving(run_dir: Path) -> None:
    if os.environ["RANK"] == "1":
        save = BackgroundSaver.save

        def slowly(*arguments: Any) -> None:
            time.sleep(SLOW_S)
            save(*arguments)

        BackgroundSaver.save = slowly  # type: ignore[method-assign]
    launch(run_dir, max_steps=5, micro_batch=4, devices=2, callbacks=[HeldBack()], checkpoint_every=9,
        milestones=[2], strategy="fsdp2")  # fmt: skip


def test_training_goes_on_while_files_are_written(tmp_path: Path) -> None:
    assert exit_codes(train_while_saving, tmp_path / "run") == [0, 0]
    names = [path.name for path in ckpt.list_checkpoints(tmp_path / "run")]
    assert names == ["step_0000002", "step_0000005"]
    ckpt.require_whole(ckpt.checkpoint_path(tmp_path / "run", 2))
    # The first rank logs how long the slowest one stood still, at the end, too.
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    stalls = {line["step"]: line["speed/save_stall_s"] for line in lines if "speed/save_stall_s" in line}
    assert set(stalls) == {2, 5}
    assert all(SLOW_S <= stall < 30 for stall in stalls.values()), stalls


class KilledWhileSaving(StepCallback):
    """SIGKILL of one rank as it writes the checkpoint of step 6."""

    def __init__(self, rank: int, function: str) -> None:
        self.rank, self.function = rank, function

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step != 5:
            return
        shell.finish_saving()  # of step 3
        if shell.trainer.global_rank == self.rank:

            def kill(*_: Any, **__: Any) -> None:
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(*_PLACES[self.function], kill)


_PLACES: dict[str, tuple[Any, str]] = {
    "shards": (background_save.dcp, "save"),
    "whole": (background_save, "put_together"),
    "seal": (ckpt, "seal"),
}


def train_and_be_killed(run_dir: Path, rank: int, function: str) -> None:
    launch(run_dir, max_steps=20, micro_batch=4, devices=2, callbacks=[KilledWhileSaving(rank, function)],
        strategy="fsdp2")  # fmt: skip


@pytest.mark.parametrize(("rank", "function"), [(1, "shards"), (0, "whole"), (0, "seal")])
def test_a_kill_while_saving_leaves_the_checkpoint_before(rank: int, function: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    codes = exit_codes(train_and_be_killed, run_dir, rank, function)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] not in (0, None)
    assert [path.name for path in ckpt.list_checkpoints(run_dir)] == ["step_0000003"]
    ckpt.require_whole(ckpt.checkpoint_path(run_dir, 3))
    assert launch(run_dir, max_steps=6).completed_steps == 6
    assert not list((run_dir / "checkpoints").glob(".*"))
    launch(tmp_path / "alone", max_steps=6)
    expected = [line["train/loss"] for line in metrics(tmp_path / "alone")]
    assert [line["train/loss"] for line in metrics(run_dir)] == pytest.approx(expected, rel=1e-5)


class SpoiledWhileSaving(StepCallback):
    """Writing takes a while; one step after the save the weights are no numbers."""

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        save = background_save.put_together

        def later(*given: Any) -> Any:
            time.sleep(1.0)
            return save(*given)

        background_save.put_together = later

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step == 4:
            for parameter in shell.model.parameters():
                parameter.detach().fill_(float("nan"))


def train_to_nan(run_dir: Path) -> None:
    try:
        launch(run_dir, max_steps=10**6, micro_batch=4, devices=2, callbacks=[SpoiledWhileSaving()],
            strategy="fsdp2", checkpoint_every=3)  # fmt: skip
    except FloatingPointError:
        os._exit(3)


def test_what_is_being_written_when_a_loss_is_no_number_is_kept(tmp_path: Path) -> None:
    assert exit_codes(train_to_nan, tmp_path / "run") == [3, 3]
    assert [path.name for path in ckpt.list_checkpoints(tmp_path / "run")] == ["step_0000003"]
    ckpt.require_whole(ckpt.checkpoint_path(tmp_path / "run", 3))


class DiskFull(StepCallback):
    """For the first rank, as it makes the directory or puts weights together."""

    def __init__(self, function: str) -> None:
        self.function = function

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        def fail(*_: Any) -> Any:
            raise OSError(28, "No space left on device")

        setattr(background_save, self.function, fail)


def train_on_a_full_disk(run_dir: Path, function: str) -> None:
    full = DiskFull(function)
    try:
        launch(run_dir, max_steps=10**6, micro_batch=4, devices=2, callbacks=[full], strategy="fsdp2",
            checkpoint_every=10**6, milestones=[3])  # fmt: skip
    except OSError as error:
        (run_dir / f"said_{dist.get_rank()}").write_text(str(error))
        os._exit(3)


@pytest.mark.parametrize("function", ["publish_directory", "put_together"])
def test_what_the_first_rank_cannot_write_ends_all_at_once(function: str, tmp_path: Path) -> None:
    """Though no other save, at which it would be heard of, is ever made."""
    run_dir = tmp_path / "run"
    assert exit_codes(train_on_a_full_disk, run_dir, function) == [3, 3]
    for rank in (0, 1):
        assert "could not be written (No space left" in (run_dir / f"said_{rank}").read_text().replace(
            "[Errno 28] ", ""
        )
    assert list((run_dir / "checkpoints").glob("*")) == []


def start_from_another(run_dir: Path) -> None:
    """The second rank is shown a directory without checkpoints, as a slow file system may show it."""
    mine = run_dir if os.environ["RANK"] == "0" else run_dir.with_name("empty")
    try:
        launch(mine, max_steps=6, micro_batch=4, devices=2)
    except RuntimeError as error:
        run_dir.with_name(f"said_{os.environ['RANK']}").write_text(str(error))
        os._exit(3)


def test_ranks_that_see_other_checkpoints_do_not_start(tmp_path: Path) -> None:
    launch(tmp_path / "run", max_steps=3)
    assert exit_codes(start_from_another, tmp_path / "run") == [3, 3]
    for rank in (0, 1):
        assert "different steps" in (tmp_path / f"said_{rank}").read_text()
        assert "[3, 0]" in (tmp_path / f"said_{rank}").read_text()
