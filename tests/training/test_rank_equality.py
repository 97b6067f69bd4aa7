"""Twenty steps of two DDP processes are those of one, also when a rank is killed and one process goes on."""

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
from sana_train.training.shell import TrainingShell

_children = multiprocessing.get_context("forkserver")
NUM_STEPS = 20
CLIP_NORM = 0.05  # below every gradient norm of this run, so that each step is clipped


class KillSecondRank(StepCallback):
    """SIGKILL, of which the process hears nothing."""

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step == 12 and shell.trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train(run_dir: Path, devices: int, is_killed: bool = False) -> None:
    """Every rank accumulates two micro-batches to the global batch of 8."""
    launch(
        run_dir,
        max_steps=NUM_STEPS,
        micro_batch=4 // devices,
        devices=devices,
        callbacks=[KillSecondRank()] if is_killed else [],
        checkpoint_every=10,
        lr=1e-3,
        clip_norm=CLIP_NORM,
    )


def one_rank(run_dir: Path, rank: int, port: int, is_killed: bool) -> None:
    """As torchrun starts it."""
    torch.set_num_threads(1)
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**torchrun, **address}.items()})
    train(run_dir, 2, is_killed)
    os._exit(0)


def exit_codes_of_two_ranks(run_dir: Path, is_killed: bool) -> list[int | None]:
    """None for a rank that has not ended within a minute."""
    run_dir.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks: list[Any] = [
        _children.Process(target=one_rank, args=(run_dir, rank, port, is_killed), daemon=True)
        for rank in (0, 1)
    ]
    for child in ranks:
        child.start()
    for child in ranks:
        child.join(60)
    return [child.exitcode for child in ranks]


def assert_equal_runs(found: Path, expected: Path) -> None:
    """Losses and gradient norms to 1e-5 relative; weights and averages of the last step to 1e-4."""
    mine, theirs = metrics(found), metrics(expected)
    assert [line["step"] for line in mine] == list(range(1, NUM_STEPS + 1))
    assert min(line["train/grad_norm"] for line in theirs) > CLIP_NORM
    for name in ("train/loss", "train/grad_norm"):
        assert [line[name] for line in mine] == pytest.approx([line[name] for line in theirs], rel=1e-5)
    for prefer_ema in (False, True):
        weights, reference = (
            ckpt.load_weights(ckpt.checkpoint_path(run, NUM_STEPS), prefer_ema) for run in (found, expected)
        )
        assert weights.keys() == reference.keys()
        for name, value in reference.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_twenty_steps_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    assert exit_codes_of_two_ranks(tmp_path / "both", is_killed=False) == [0, 0]
    train(tmp_path / "alone", 1)
    assert_equal_runs(tmp_path / "both", tmp_path / "alone")


@pytest.mark.slow
def test_one_process_goes_on_where_a_rank_was_killed(tmp_path: Path) -> None:
    first, second = exit_codes_of_two_ranks(tmp_path / "both", is_killed=True)
    assert second == -signal.SIGKILL
    assert first not in (0, None)  # the other rank ends, too, rather than wait for it
    assert [path.name for path in ckpt.list_checkpoints(tmp_path / "both")] == ["step_0000010"]
    train(tmp_path / "both", 1)
    train(tmp_path / "alone", 1)
    assert_equal_runs(tmp_path / "both", tmp_path / "alone")
