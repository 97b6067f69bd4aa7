"""Rates by a clock that only moves where the test says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_harness import launch, make_clips, make_task

from sana_train.data.resident import ResidentClips
from sana_train.training import shell as shell_module
from sana_train.training.callbacks import throughput as throughput_module
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.callbacks.convergence import ConvergenceCallback
from sana_train.training.callbacks.throughput import ThroughputCallback, Work, peak_flops
from sana_train.training.jsonl import read_jsonl
from sana_train.training.shell import TrainingShell
from sana_train.training.tasks.flow import FlowTask

STEP_S, FETCH_S, EVALUATION_S = 0.75, 0.25, 100.0
STALL = "speed/save_stall_s"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (shell_module, throughput_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    return clock


def slow_task(clock: Clock) -> FlowTask:
    task = make_task()
    plain_step = task.step

    def step(batch: Any, rng: Any) -> Any:
        clock.now += STEP_S * len(batch) / 8
        return plain_step(batch, rng)

    task.step = step  # type: ignore[method-assign]
    return task


def slow_clips(clock: Clock) -> ResidentClips:
    clips = make_clips()
    plain_batch = clips.batch

    def batch(indices: Any) -> Any:
        clock.now += FETCH_S * len(indices) / 8
        return plain_batch(indices)

    clips.batch = batch  # type: ignore[method-assign]
    return clips


class SlowSave(StepCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        with shell.paused():
            self.clock.now += 7.0


def speeds(run_dir: Path) -> list[dict[str, Any]]:
    return [line for line in read_jsonl(run_dir / "metrics.jsonl") if "speed/samples_per_s" in line]


@pytest.mark.parametrize("micro_batch", [8, 2])
@pytest.mark.parametrize("is_first", [True, False])
def test_rates_leave_out_evaluations_and_saves(
    tmp_path: Path, clock: Clock, micro_batch: int, is_first: bool
) -> None:
    def evaluate(step: int) -> dict[str, float]:
        clock.now += EVALUATION_S
        return {"heldout/loss": 1.0}

    slow = [ConvergenceCallback([0, 2, 3, 4], evaluate, lambda step, values: False), SlowSave(clock)]
    throughput = ThroughputCallback(2, lambda batch: Work(10**9, 18))
    launch(
        tmp_path,
        max_steps=6,
        task=slow_task(clock),
        clips=slow_clips(clock),
        callbacks=[throughput, *slow] if is_first else [*slow, throughput],
        micro_batch=micro_batch,
    )
    lines = speeds(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert line["speed/samples_per_s"] == pytest.approx(8.0 / (STEP_S + FETCH_S))
        assert line["speed/tokens_per_s"] == pytest.approx(18 * 8.0 / (STEP_S + FETCH_S))
        assert line["speed/data_wait_share"] == pytest.approx(FETCH_S / (STEP_S + FETCH_S))


def test_every_save_tells_how_long_training_stood_still(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one at the end, too; and no other step does."""
    plain_save = shell_module.ckpt.save_checkpoint

    def save(*arguments: Any) -> None:
        clock.now += 7.0
        plain_save(*arguments)

    monkeypatch.setattr(shell_module.ckpt, "save_checkpoint", save)
    launch(
        tmp_path,
        max_steps=5,
        task=slow_task(clock),
        clips=slow_clips(clock),
        callbacks=[ThroughputCallback(1, lambda batch: Work(10**9, 18))],
        checkpoint_every=3,
        milestones=[2],
    )
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    found = [(line["step"], line[STALL]) for line in lines if STALL in line]
    assert found == [(2, 7.0), (3, 7.0), (5, 7.0)]
    for line in speeds(tmp_path):  # which are not the slower for it
        assert line["speed/samples_per_s"] == pytest.approx(8.0 / (STEP_S + FETCH_S))


def test_a_cpu_has_no_mfu_and_no_device_memory(tmp_path: Path) -> None:
    throughput = ThroughputCallback(1, lambda batch: Work(10**9, 18))
    launch(tmp_path, max_steps=3, callbacks=[throughput])
    assert [line["step"] for line in speeds(tmp_path)] == [2, 3]
    names = {"step", "speed/samples_per_s", "speed/tokens_per_s", "speed/data_wait_share"}
    assert set(speeds(tmp_path)[0]) == names
    launch(tmp_path / "other network", max_steps=3, callbacks=[ThroughputCallback(1, None)])
    assert set(speeds(tmp_path / "other network")[0]) == names - {"speed/tokens_per_s"}
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Some Unknown Chip", None),
    ],
)
def test_mfu_is_model_flops_over_the_chips_peak(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    device = torch.device("cuda")
    assert peak_flops(device) == expected
    callback = ThroughputCallback(1, lambda batch: Work(batch.flops, 0))  # type: ignore[attr-defined]
    trainer: Any = SimpleNamespace(world_size=2)

    class Samples(list[int]):
        """A batch that says itself what each of its samples costs."""

        flops = 0

    for flops in (10**12, 2 * 10**12, 3 * 10**12):  # of three buckets
        batch = Samples([0] * 100)
        batch.flops = flops
        callback.on_train_batch_start(trainer, None, batch, 0)
    values = callback._metrics(device, elapsed_s=4.0, world_size=2)
    assert values["speed/peak_memory_gib"] == 3.0
    if expected is None:
        assert "speed/mfu" not in values
    else:  # 150 samples/s of 2 TFLOP on two chips
        assert values["speed/mfu"] == pytest.approx(150 * 2e12 / (2 * expected))
