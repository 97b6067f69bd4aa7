"""A sweep as a picture: every run's loss along training, and where each arm's seeds end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from sana_train.evaluation.figure_style import arm_colour, new_figure, step_position, style_step_axis
from sana_train.evaluation.sweep import Sweep
from sana_train.evaluation.sweep_report import label, letter, text

_MAX_LABEL = 28  # characters beside the right panel; longer names become the table's letters


def sweep_figure(path: Path, sweep: Sweep) -> None:
    """Held-out loss, or the training loss where no run was evaluated."""
    has_heldout = any(run.series("heldout/loss")[1] for run in sweep.runs)
    key = "heldout/loss" if has_heldout else "train/loss"
    labels = [" ".join(map(text, arm.values)) for arm in sweep.arms]
    if max(map(len, labels)) > _MAX_LABEL:
        labels = [letter(position) for position in range(len(sweep.arms))]
    elif labels == [""]:
        labels = ["all runs"]
    colours = [arm_colour(label, labels) for label in labels]
    with new_figure(10.0, 2.6 + 0.3 * max(4, len(labels)), path) as figure:
        curves, ends = figure.subplots(1, 2)
        _draw_curves(curves, sweep, key, colours)
        _draw_ends(ends, sweep, key, labels, colours)
        curves.set_title("Held-out loss" if has_heldout else "Training loss")
        ends.set_title("Last value of each seed, and the median")
        if labels[0] != letter(0):
            ends.set_ylabel(", ".join(label(key, sweep.keys) for key in sweep.keys))


def _draw_curves(axes: Axes, sweep: Sweep, key: str, colours: Sequence[str]) -> None:
    for arm, colour in zip(sweep.arms, colours, strict=True):
        for run in arm.runs:
            steps, values = run.series(key)
            style = "-" if run.status == "finished" else "--"
            axes.plot(step_position(steps), values, style, color=colour, linewidth=1.2, marker=".")
    style_step_axis(axes, max(1, *(run.step for run in sweep.runs)))


def _draw_ends(axes: Axes, sweep: Sweep, key: str, labels: Sequence[str], colours: Sequence[str]) -> None:
    for position, (arm, colour) in enumerate(zip(sweep.arms, colours, strict=True)):
        values = [found[-1] for run in arm.runs if (found := run.series(key)[1])]
        axes.plot(values, [position] * len(values), "o", color=colour, alpha=0.6)
        if values:
            middle = statistics.median(values)
            axes.plot([middle, middle], [position - 0.3, position + 0.3], color=colour, linewidth=2.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
