from __future__ import annotations

import dataclasses

import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from sana_train.evaluation.convergence.levels import Levels
from sana_train.evaluation.figure_style import HEADLINE_COLOURS, arm_colour
from sana_train.evaluation.figures import convergence_figure
from sana_train.evaluation.record import Record
from sana_train.evaluation.record_figure import record_figure


def num_pixels(path, colour: str) -> int:
    picture = torch.from_numpy(imread(path)[..., :3].copy())
    return int(((picture - torch.tensor(to_rgb(colour))).abs().amax(-1) < 0.01).sum())


def history(record: Record):
    run = record.select("random")[0]
    return list(zip(run.steps, run.metrics, strict=True))


def test_record_figure_draws_every_arm(record_dir, tmp_path):
    record = Record.load(record_dir)
    record_figure(tmp_path / "record.png", record, "a title")
    for arm in record.arms:
        assert num_pixels(tmp_path / "record.png", arm_colour(arm, record.arms)) > 500
    assert imread(tmp_path / "record.png").shape[1] == 1500


def test_a_record_of_bands_alone_is_drawn_without_samples(record_dir, tmp_path):
    record = Record.load(record_dir)
    for run in record.runs:
        run.metrics = [
            {name: value for name, value in row.items() if name.startswith("heldout/")} for row in run.metrics
        ]
    record_figure(tmp_path / "bands.png", record)
    assert num_pixels(tmp_path / "bands.png", arm_colour("scratch", record.arms)) > 500


def test_convergence_figure_with_and_without_samples(record_dir, tmp_path):
    record = Record.load(record_dir)
    full = history(record)
    clips = {label: torch.full((2, 3, 17, 64, 64), 0.5) for label in ("step 0", "step 500", "target")}
    convergence_figure(tmp_path / "full.png", full, record.levels, [(0, 1.2), (100, 0.8)], clips, "run")
    assert num_pixels(tmp_path / "full.png", HEADLINE_COLOURS["colour"]) > 300  # the third headline
    assert num_pixels(tmp_path / "full.png", "#bfbfbf") > 50_000  # the strip: 0.5 is grey 191
    bands = [
        (step, {name: value for name, value in row.items() if name.startswith("heldout/")})
        for step, row in full[:8]
    ]
    convergence_figure(tmp_path / "cpu.png", bands, Levels())
    assert num_pixels(tmp_path / "cpu.png", HEADLINE_COLOURS["loss_low"]) > 300
    assert num_pixels(tmp_path / "cpu.png", HEADLINE_COLOURS["colour"]) == 0


def test_levels_appear_as_lines(record_dir, tmp_path):
    record = Record.load(record_dir)
    colour = HEADLINE_COLOURS["loss_high"]
    convergence_figure(tmp_path / "with.png", history(record), record.levels)
    bare = dataclasses.replace(record.levels, zero={}, ceiling={}, chance={})
    convergence_figure(tmp_path / "without.png", history(record), bare)
    assert num_pixels(tmp_path / "with.png", colour) > num_pixels(tmp_path / "without.png", colour) + 300


def test_arms_keep_their_colour_and_unknown_arms_get_distinct_ones():
    arms = ["ridge", "random", "distil"]
    assert arm_colour("random", arms) == arm_colour("random", ["scratch", "random"])
    assert len({arm_colour(arm, arms) for arm in arms}) == 3


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no evaluation to draw"):
        convergence_figure(tmp_path / "none.png", [], Levels())
    assert not list(tmp_path.iterdir())
