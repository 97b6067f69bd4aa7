"""Two processes train as one does, and only the first writes and evaluates."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from training_harness import launch, metrics

from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.callbacks.convergence import ConvergenceCallback
from sana_train.training.interruption import StopAtStepEnd
from sana_train.training.shell import TrainingShell

_children = multiprocessing.get_context("forkserver")


class SignalOnSecondRank(StepCallback):
    """A preemption of which only one rank hears."""

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step == 3 and shell.trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def one_rank(run_dir: Path, rank: int, port: int) -> None:
    """As torchrun starts it; leaves a file for each evaluation and exits with 75 when preempted."""
    torch.set_num_threads(1)
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**torchrun, **address}.items()})

    def evaluate(step: int) -> dict[str, float]:
        (run_dir / f"evaluated_{step}_by_{rank}").touch()
        return {"heldout/step": float(step)}

    watch = ConvergenceCallback([0, 2], evaluate, lambda step, values: False)
    stop = StopAtStepEnd(lambda text: None)
    launch(
        run_dir,
        max_steps=9,
        micro_batch=4,
        callbacks=[watch, SignalOnSecondRank()],
        checkpoint_every=2,
        devices=2,
        stop=stop,
    )
    os._exit(75 if stop.was_preempted else 0)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_ranks_are_one_run(tmp_path: Path, port: int) -> None:
    both = tmp_path / "both"
    both.mkdir()
    ranks: list[Any] = [
        _children.Process(target=one_rank, args=(both, rank, port), daemon=True) for rank in (0, 1)
    ]
    for child in ranks:
        child.start()
    for child in ranks:
        child.join(60)
    assert [child.exitcode for child in ranks] == [75, 75]
    assert sorted(path.name for path in both.glob("evaluated_*")) == ["evaluated_0_by_0", "evaluated_2_by_0"]
    assert [path.name for path in ckpt.list_checkpoints(both)] == ["step_0000002", "step_0000003"]

    alone = launch(tmp_path / "alone", max_steps=3)
    trained = [line for line in metrics(both) if "train/loss" in line]
    expected = metrics(tmp_path / "alone")
    assert [line["step"] for line in trained] == [1, 2, 3]
    for mine, theirs in zip(trained, expected, strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
    weights = ckpt.load_weights(ckpt.checkpoint_path(both, 3), prefer_ema=False)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
    assert launch(both, max_steps=5).completed_steps == 5
