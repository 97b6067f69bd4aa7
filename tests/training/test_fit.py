"""What ``train.py`` builds around a run: resume, the end, and how many ranks share a batch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from training_harness import assert_same_run, make_clips, make_task

from sana_train.cli.fit import Fit, pick_precision, world_size
from sana_train.training import checkpoint as ckpt
from sana_train.training.shell import TrainingShell


def config(max_steps: int, **trainer: Any) -> Any:
    training = {
        "seed": 3,
        "max_steps": max_steps,
        "global_batch": 8,
        "micro_batch": 4,
        "optimiser": "adamw",
        "lr": 1e-2,
        "warmup_steps": 2,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "ema_decay": 0.9,
        "precision": "auto",
        "checkpoint_every": 100,
        "keep_full": 2,
        "milestones": [],
    }
    where: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": "auto",
        "num_nodes": 1,
        "num_workers": 0,
        "log_every": 2,
        "deterministic": False,
        "strategy": "ddp",
        "stall_s": None,
    }
    return SimpleNamespace(
        training=SimpleNamespace(**training),
        trainer=SimpleNamespace(**{"max_minutes": None, "at_limit": "stop", **where, **trainer}),
        data=SimpleNamespace(shuffle_window_shards=None),
    )


def make_fit(run_dir: Path, max_steps: int, **trainer: object) -> Fit:
    clips, console = make_clips(), Console(quiet=True)
    cfg = config(max_steps, **trainer)
    return Fit(cfg, make_task(), clips, clips, run_dir, {"run_id": run_dir.name}, console)


def fit(run_dir: Path, max_steps: int) -> tuple[int, TrainingShell]:
    job = make_fit(run_dir, max_steps)
    return job([], []), job.shell


@pytest.mark.parametrize(("at_limit", "is_over"), [("stop", False), ("finish", True)])
def test_a_time_limit_counts_from_the_process_start_and_saves(
    tmp_path: Path, at_limit: str, is_over: bool
) -> None:
    # The package was imported more than a microsecond ago, so the first step is already late.
    job = make_fit(tmp_path, 50, max_minutes=1e-8, at_limit=at_limit)
    assert job([], []) == 1
    assert [ckpt.step_of(path) for path in ckpt.list_checkpoints(tmp_path)] == [1]
    assert job.is_over(1) is is_over
    assert not job.was_preempted
    assert make_fit(tmp_path, 50).start_step == 1
    assert job.is_over(50)


def test_raising_max_steps_continues_the_same_run(tmp_path: Path) -> None:
    assert fit(tmp_path / "parts", 3)[0] == 3
    completed, resumed = fit(tmp_path / "parts", 5)
    assert completed == 5
    _, straight = fit(tmp_path / "straight", 5)
    assert_same_run(straight, resumed)


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    fit(tmp_path, 3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert fit(tmp_path, 3)[0] == 3
    assert fit(tmp_path, 2)[0] == 3
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_cpu_run_on_a_machine_with_gpus_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert world_size(config(1, accelerator="cpu")) == 1
    assert world_size(config(1, accelerator="gpu", num_nodes=2)) == 8
    assert world_size(config(1, accelerator="auto", devices=2)) == 2


def test_precision_follows_the_device_unless_it_is_given() -> None:
    assert pick_precision("auto", torch.device("cuda")) == "bf16-mixed"
    assert pick_precision("auto", torch.device("cpu")) == "32-true"
    assert pick_precision("32-true", torch.device("cuda")) == "32-true"


def test_other_clips_are_another_run(tmp_path: Path) -> None:
    """The configuration may be the same: a folder of shards can grow while a run is away."""
    clips, console = make_clips(), Console(quiet=True)

    def go_on(max_steps: int, num_clips: int) -> Fit:
        run = {"run_id": "mine", "clips": {"num_clips": num_clips, "fingerprint": "abc"}}
        return Fit(config(max_steps), make_task(), clips, clips, tmp_path, run, console)

    go_on(2, 20)([], [])
    with pytest.raises(
        ValueError, match=r"clips are not those .*step_0000002.*'num_clips': 20.* 24.*shards back"
    ):
        go_on(4, 24)
    assert go_on(4, 20)([], []) == 4
