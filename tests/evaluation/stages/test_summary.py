"""Intervals against what they must be, and results of several steps in one file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sana_train.evaluation.stages import history
from sana_train.evaluation.stages.summary import Bootstrap, Mean, rows_of, summarise


def test_the_interval_is_that_of_a_normal_mean() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    mean = Bootstrap(400, 4000, 0).mean(values)
    assert mean is not None
    assert (mean.mean, mean.num_clips) == (pytest.approx(values.mean()), 400)
    half = 1.96 * values.std() / 20
    assert mean.high - mean.mean == pytest.approx(half, rel=0.1)
    assert mean.mean - mean.low == pytest.approx(half, rel=0.1)


def test_what_does_not_apply_is_left_out_of_every_draw() -> None:
    bootstrap = Bootstrap(4, 500, 0)
    assert bootstrap.mean(np.full(4, np.nan)) is None
    assert bootstrap.mean(np.array([3.0, np.nan, 3.0, np.nan])) == Mean(3.0, 3.0, 3.0, 2)


def test_a_difference_is_paired_by_clip() -> None:
    """Clips differ by far more than the stages do: unpaired, the interval would hold 0."""
    clips = np.random.default_rng(1).normal(0.0, 10.0, 64)
    per_clip = {"stage1/spectrum_gap": clips, "stage2/spectrum_gap": clips - 0.5, "ceiling/psnr_db": clips}
    columns, differences = summarise(per_clip, 500, 0)
    difference = differences["stage2 - stage1"]["spectrum_gap"]
    assert (difference.low, difference.high) == (pytest.approx(-0.5), pytest.approx(-0.5))
    assert columns["stage1"]["spectrum_gap"].high - columns["stage1"]["spectrum_gap"].low > 3
    assert set(differences) == {"stage2 - stage1"}
    rows = rows_of(columns, differences)
    assert rows[-1] == ["stage2 - stage1", "spectrum_gap", "-0.500 [-0.500, -0.500]", "64"]


def test_results_are_merged_by_step_whoever_makes_them_and_in_whatever_order(tmp_path: Path) -> None:
    path = tmp_path / "two_stage.jsonl"
    for step, settings, value in ((20, "a", 2.0), (10, "a", 1.0), (20, "b", 9.0), (20, "a", 3.0)):
        line = {"step": step, "weights": "ema", "settings": settings, "two_stage/stage1/semantic": value}
        lines = history.merge(path, line)
    assert [(each["step"], each["two_stage/stage1/semantic"]) for each in lines] == [(10, 1.0), (20, 3.0)]
    stored = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(each["step"], each["settings"]) for each in stored] == [(10, "a"), (20, "a"), (20, "b")]


@pytest.mark.parametrize("damaged", ['{"step": 5, "wei', "[]", '{"step": 5}'])
def test_a_damaged_line_is_named_and_nothing_is_lost(damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "two_stage.jsonl"
    line = {"step": 1, "weights": "ema", "settings": "a"}
    history.merge(path, line)
    path.write_text(path.read_text() + damaged + "\n")
    before = path.read_text()
    with pytest.raises(ValueError, match="line 2 is no evaluation"):
        history.merge(path, {**line, "step": 2})
    assert path.read_text() == before
