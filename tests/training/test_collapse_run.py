"""A real run that learns and then, warmed up to a rate a thousand times too high, loses it all again."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from training_harness import ScaledSpace, launch, make_clips, make_task, metrics

from sana_train.cli.load import compose_config, load
from sana_train.cli.study import Study
from sana_train.training.shell import TrainingShell

GOOD_LR = 3e-3
FAR_TOO_HIGH = 1000 * GOOD_LR
GRID = list(range(0, 81, 10))
MAX_RISES, MAX_FACTOR = 3, 2.0  # by which the study calls a collapse


class FlatSpace(ScaledSpace):
    """Also decodes, to grey frames of the first channel."""

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents[:, :1].repeat_interleave(8, 2).repeat_interleave(32, 3).repeat_interleave(32, 4)
        return frames.expand(-1, 3, -1, -1, -1).clamp(-1, 1)


def train(run_dir: Path, max_steps: int, lr: float, *, has_to_stop: bool) -> TrainingShell:
    """Up to ``max_steps`` under the study that the command line makes; it warms up to ``lr`` by 1,000."""
    overrides = {
        "steps": GRID,
        "reference": "null",
        "num_samples": 0,
        "num_loss_clips": 12,
        "num_strips": 1,
        "generator.schedule.num_steps": 1,
        "stop_on_collapse": has_to_stop,
    }
    cfg = load(
        compose_config(["experiment=ltx_adapt", *(f"convergence.{k}={v}" for k, v in overrides.items())])
    )
    task = make_task()
    parts: Any = SimpleNamespace(
        cfg=cfg,
        model=task.model,
        autoencoder=FlatSpace(),
        reader=None,
        device=torch.device("cpu"),
        num_samples=lambda convergence: 0,
    )
    clips: Any = make_clips()
    study = Study(cfg, parts, clips, clips, run_dir, Console(file=io.StringIO()), loggers=[])
    return launch(
        run_dir,
        max_steps=max_steps,
        task=task,
        clips=clips,
        lr=lr,
        warmup_steps=1000,
        callbacks=study.callbacks,
    )


def losses(run_dir: Path) -> dict[int, float]:
    key = "heldout/loss_high"
    return {line["step"]: line[key] for line in metrics(run_dir) if key in line}


def collapse_step(curve: dict[int, float]) -> int:
    """By either rule, of a whole curve: as processors round differently, so may another rule be the first."""
    steps, values = list(curve), list(curve.values())
    for i, value in enumerate(values):
        has_risen = i >= MAX_RISES and all(values[k] > values[k - 1] for k in range(i - MAX_RISES + 1, i + 1))
        if has_risen or value > MAX_FACTOR * min(values[: i + 1]):
            return steps[i]
    raise AssertionError(f"nothing collapses in {curve}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The curve of the run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, GRID[-1], FAR_TOO_HIGH, has_to_stop=False).completed_steps == GRID[-1]
    return losses(folder)


def test_it_is_said_when_a_run_collapses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: dict[int, float]
) -> None:
    with caplog.at_level(logging.WARNING):
        shell = train(tmp_path, GRID[-1], FAR_TOO_HIGH, has_to_stop=False)
    curve = losses(tmp_path)
    assert curve == whole
    best = min(curve, key=lambda step: curve[step])
    assert 20 <= best < collapse_step(curve) < GRID[-1]
    assert curve[best] < 0.2 * curve[0]  # it had learnt
    assert (
        max(curve[step] for step in GRID if step > best) > 2 * curve[best]
    )  # and lost it; not by blowing up
    assert all(math.isfinite(loss) for loss in curve.values())
    warnings = [record.getMessage() for record in caplog.records if "collapse" in record.getMessage()]
    assert f" step {collapse_step(curve)} " in warnings[0]
    assert shell.completed_steps == GRID[-1]  # a warning stops nothing


def test_a_collapse_stops_the_run_where_asked_with_a_checkpoint(
    tmp_path: Path, whole: dict[int, float]
) -> None:
    step = collapse_step(whole)
    shell = train(tmp_path, GRID[-1], FAR_TOO_HIGH, has_to_stop=True)
    assert shell.completed_steps == step
    assert list(losses(tmp_path)) == [each for each in GRID if each <= step]
    assert (tmp_path / "checkpoints" / f"step_{step:07d}" / "training_state").is_dir()


def test_a_resumed_run_knows_what_came_before_it(tmp_path: Path, whole: dict[int, float]) -> None:
    """The process that stops sees the last two evaluations alone."""
    step = collapse_step(whole)
    train(tmp_path, step - 20, FAR_TOO_HIGH, has_to_stop=True)
    shell = train(tmp_path, GRID[-1], FAR_TOO_HIGH, has_to_stop=True)
    assert shell.completed_steps == step


def test_a_good_rate_collapses_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        shell = train(tmp_path, GRID[-1], GOOD_LR, has_to_stop=True)
    assert shell.completed_steps == GRID[-1]
    assert "collapse" not in caplog.text
