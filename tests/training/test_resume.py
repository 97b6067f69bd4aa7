"""A run in pieces is the run in one piece, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_harness import assert_same_run, final_state, launch, make_task, metrics

from sana_train.training import checkpoint as ckpt
from sana_train.training.eight_bit import missing_bitsandbytes
from sana_train.training.optimiser import OptimiserName

needs_bitsandbytes = pytest.mark.skipif(
    missing_bitsandbytes() is not None, reason="bitsandbytes is not installed"
)


@pytest.mark.parametrize(
    ("micro_batch", "kept_start_step", "log_every", "optimiser"),
    [
        pytest.param(8, None, 1, "adamw", id="plain"),
        pytest.param(4, None, 2, "adamw", id="accumulation, stopped inside a logging window"),
        pytest.param(8, 4, 1, "adamw", id="stopped before the kept layers start"),
        pytest.param(2, 2, 4, "adamw", id="stopped after the kept layers started, with accumulation"),
        pytest.param(8, None, 1, "muon", id="two kinds of moments"),
        pytest.param(8, 4, 1, "muon", id="two kinds of moments, stopped before the kept layers start"),
        pytest.param(8, None, 1, "adamw_8bit", id="moments in 8 bits", marks=needs_bitsandbytes),
        pytest.param(
            4,
            4,
            2,
            "adamw_8bit",
            id="moments in 8 bits, stopped before the kept layers start",
            marks=needs_bitsandbytes,
        ),
    ],
)
def test_two_processes_equal_one(
    tmp_path: Path, micro_batch: int, kept_start_step: int | None, log_every: int, optimiser: OptimiserName
) -> None:
    def run(name: str, max_steps: int, checkpoint_every: int):
        task = make_task(kept_start_step)
        return launch(
            tmp_path / name,
            max_steps=max_steps,
            task=task,
            micro_batch=micro_batch,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            optimiser=optimiser,
        )

    straight = run("straight", 6, 6)
    assert run("parts", 3, 6).completed_steps == 3
    resumed = run("parts", 6, 6)
    assert resumed.completed_steps == 6
    assert_same_run(straight, resumed)
    assert [line["step"] for line in metrics(resumed.run_dir)] == list(range(log_every, 7, log_every))


def test_a_machine_that_fits_less_goes_on_with_the_same_run(tmp_path: Path) -> None:
    straight = launch(tmp_path / "straight", max_steps=4, micro_batch=8, log_every=4)
    launch(tmp_path / "parts", max_steps=2, micro_batch=8, log_every=4)
    resumed = launch(tmp_path / "parts", max_steps=4, micro_batch=2, log_every=4)
    mine, theirs = metrics(straight.run_dir), metrics(resumed.run_dir)
    assert len(mine) == len(theirs) == 1
    assert mine[0]["train/loss"] == pytest.approx(theirs[0]["train/loss"], rel=1e-4)


def test_max_steps_changes_nothing_before_it(tmp_path: Path) -> None:
    short = launch(tmp_path / "short", max_steps=3)
    long = launch(tmp_path / "long", max_steps=5)
    assert metrics(short.run_dir) == metrics(long.run_dir)[:3]
    at_three = ckpt.load_weights(ckpt.checkpoint_path(long.run_dir, 3), prefer_ema=False)
    for name, value in short.model.state_dict().items():
        assert torch.equal(value, at_three[name])


def test_training_moves_every_parameter_and_the_seed_decides(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in make_task().model.state_dict().items()}
    one, other = (final_state(launch(tmp_path / name, max_steps=2)) for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    unmoved = {name for name, value in before.items() if torch.equal(value, one[f"model/{name}"])}
    assert unmoved == {"null_context"}
