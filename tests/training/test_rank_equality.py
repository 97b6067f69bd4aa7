"""Twenty steps of two ranks are those of one process, also when a rank is killed and one process goes on."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from rank_processes import exit_codes
from training_harness import launch, make_task, metrics

from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.shell import TrainingShell
from sana_train.training.trainer import StrategyName

NUM_STEPS = 20
SAVED = ["step_0000005", "step_0000010"]  # a milestone and a full checkpoint
CLIP_NORM = 0.05  # below every gradient norm of this run, so that each step is clipped


class KillSecondRank(StepCallback):
    """SIGKILL, of which the process hears nothing, when the checkpoint of step 10 is there."""

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step == 12 and shell.trainer.global_rank == 1:
            while not ckpt.checkpoint_path(shell.run_dir, 10).exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    run_dir: Path,
    devices: int,
    strategy: StrategyName = "ddp",
    is_killed: bool = False,
    ranks_per_copy: int | None = None,
    recompute: str = "none",
    kernels: str = "reference",
    precision: str = "32-true",
) -> None:
    """Every rank accumulates two micro-batches to the global batch of 8; a group starts at step 5."""
    task = make_task(kept_start_step=5, depth=2)  # blocks are gathered one behind the other
    task.model.set_recompute(recompute)  # type: ignore[operator]
    task.model.set_kernels(kernels)  # type: ignore[operator]
    launch(
        run_dir,
        max_steps=NUM_STEPS,
        task=task,
        micro_batch=4 // devices,
        devices=devices,
        callbacks=[KillSecondRank()] if is_killed else [],
        checkpoint_every=10,
        milestones=[5],
        lr=1e-3,
        clip_norm=CLIP_NORM,
        strategy=strategy,
        ranks_per_copy=ranks_per_copy,
        precision=precision,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    train(run_dir, 1)
    return run_dir


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


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_twenty_steps_of_two_ranks_are_those_of_one(strategy: str, alone: Path, tmp_path: Path) -> None:
    assert exit_codes(train, tmp_path / "both", 2, strategy) == [0, 0]
    assert_equal_runs(tmp_path / "both", alone)


def test_in_bf16_shards_differ_from_one_process_by_its_noise_alone(tmp_path: Path) -> None:
    """Weights of norms and tables are rounded as they are gathered; one process leaves those in float32."""
    train(tmp_path / "alone", 1, precision="bf16-mixed")
    given = ("fsdp2", False, None, "none", "reference", "bf16-mixed")
    assert exit_codes(train, tmp_path / "both", 2, *given) == [0, 0]
    found, expected = (
        [line["train/loss"] for line in metrics(tmp_path / name)] for name in ("both", "alone")
    )
    assert found == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recompute", "kernels"),
    [
        ("selective", "reference"),
        ("full", "reference"),
        ("none", "compiled"),
        ("selective", "compiled"),
        ("full", "compiled"),
    ],
)
def test_sharded_blocks_may_be_recomputed_and_compiled(
    recompute: str, kernels: str, alone: Path, tmp_path: Path
) -> None:
    given = ("fsdp2", False, None, recompute, kernels)
    assert exit_codes(train, tmp_path / "both", 2, *given, limit_s=200) == [0, 0]
    assert_equal_runs(tmp_path / "both", alone)


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "ranks_per_copy"), [(2, 1), (4, 2)])
def test_copies_of_sharded_models_are_one_run(
    num_ranks: int, ranks_per_copy: int, alone: Path, tmp_path: Path
) -> None:
    codes = exit_codes(
        train, tmp_path / "all", num_ranks, "hsdp", False, ranks_per_copy, num=num_ranks, limit_s=120
    )
    assert codes == [0] * num_ranks
    assert_equal_runs(tmp_path / "all", alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_process_goes_on_where_a_rank_was_killed(strategy: str, alone: Path, tmp_path: Path) -> None:
    first, second = exit_codes(train, tmp_path / "both", 2, strategy, True)
    assert second == -signal.SIGKILL
    assert first not in (0, None)  # the other rank ends, too, rather than wait for it
    assert [path.name for path in ckpt.list_checkpoints(tmp_path / "both")] == SAVED
    train(tmp_path / "both", 1)
    assert_equal_runs(tmp_path / "both", alone)


def test_two_sharded_ranks_go_on_where_one_process_was(alone: Path, tmp_path: Path) -> None:
    """From its checkpoint of step 10, moments and averages included."""
    both = tmp_path / "both"
    train_to_ten(both)
    assert [path.name for path in ckpt.list_checkpoints(both)] == SAVED
    assert exit_codes(train, both, 2, "fsdp2") == [0, 0]
    assert_equal_runs(both, alone)


def train_to_ten(run_dir: Path) -> None:
    train(run_dir, 1)
    shutil.rmtree(ckpt.checkpoint_path(run_dir, NUM_STEPS))
