"""Convergence of one run in the manner of the paper's Figure 6, and of several arms in a record."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from torch import Tensor

from sana_train.evaluation.convergence.levels import Levels
from sana_train.evaluation.convergence.s90 import SAMPLE_HEADLINES, THRESHOLD
from sana_train.evaluation.convergence.verdict import History, verdict
from sana_train.evaluation.figure_style import (
    HEADLINE_COLOURS,
    LEVEL_STYLES,
    MUTED,
    RULE,
    arm_colour,
    claim_lines,
    level_legend,
    level_line,
    new_figure,
    step_position,
    style_step_axis,
)
from sana_train.evaluation.record import Record
from sana_train.evaluation.record_tables import TITLES, s90_rows
from sana_train.evaluation.strips import frame_grid, show_grid
from sana_train.evaluation.video_stats import comparison_frames

_LOSS_LEVELS = ("zero", "reference")
_BANDS = {"loss_high": "high noise (semantics)", "loss_low": "low noise (texture)"}


def convergence_figure(
    path: Path,
    history: History,
    levels: Levels,
    train_loss: Sequence[tuple[int, float]] = (),
    strip: Mapping[str, Tensor] | None = None,
    title: str = "",
) -> None:
    """Loss curve, sample scores where there are any, and how the picture comes back.

    Args:
        history: (step, metrics) per evaluation.
        train_loss: (step, loss) per logged training step.
        strip: label (``step 0``, ..., ``target``) -> clips (n, 3, F, H, W) of the same n prompts; one
            frame of each is shown.
    """
    if not history:
        raise ValueError("there is no evaluation to draw; is convergence.steps empty?")
    has_samples = any("samples/semantic" in row for _, row in history)
    strip_in = 0.0
    if strip:
        clips = next(iter(strip.values()))
        strip_in = 10.0 / len(strip) * len(clips) * clips.shape[3] / clips.shape[4] + 0.3
    with new_figure(10.0, 4.3 + strip_in, path) as figure:
        rows = figure.add_gridspec(2 if strip else 1, 1, height_ratios=[4.0, strip_in] if strip else [1])
        panels = rows[0].subgridspec(1, 2, wspace=0.08)
        loss_axes = figure.add_subplot(panels[0] if has_samples else rows[0])
        _draw_losses(loss_axes, history, levels, train_loss)
        if has_samples:
            _draw_scores(figure.add_subplot(panels[1]), history, levels)
        if strip:
            axes = figure.add_subplot(rows[1])
            shown = [comparison_frames(clip) for clip in strip.values()]
            middle = shown[0].shape[2] // 2
            grid = np.concatenate(
                [_padded(frame_grid([clip[i] for clip in shown], [middle])) for i in range(len(shown[0]))]
            )
            show_grid(axes, grid, list(strip))
        kinds = [
            kind for kind in LEVEL_STYLES if levels.means(kind) and (has_samples or kind in _LOSS_LEVELS)
        ]
        level_legend(figure, kinds)
        lines = textwrap.wrap(verdict(history, levels), 110)
        figure.suptitle("\n".join([title, *lines] if title else lines), fontsize=10, x=0.01, ha="left")


def _padded(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((0, 4), (0, 0), (0, 0)), constant_values=255)


def _draw_losses(
    axes: Axes, history: History, levels: Levels, train_loss: Sequence[tuple[int, float]]
) -> None:
    last_step = history[-1][0]
    if train_loss:
        steps, losses = zip(*train_loss, strict=True)
        axes.plot(step_position(steps), losses, color="#c3cad2", linewidth=0.9, zorder=1, label="training")
    for headline, label in _BANDS.items():
        metric, colour = f"heldout/{headline}", HEADLINE_COLOURS[headline]
        points = [(step, row[metric]) for step, row in history if metric in row]
        if not points:
            continue
        steps, losses = zip(*points, strict=True)
        axes.plot(step_position(steps), losses, "o-", markersize=3.5, color=colour, label=label)
        for kind in _LOSS_LEVELS:
            value = levels.means(kind).get(metric)
            if value is not None:
                level_line(axes, kind, value, colour)
    claim_lines(axes, last_step)
    style_step_axis(axes, last_step)
    axes.set_title("Flow-matching loss, held-out clips")
    axes.legend(loc="upper right")


def _draw_scores(axes: Axes, history: History, levels: Levels) -> None:
    last_step = history[-1][0]
    for headline in SAMPLE_HEADLINES:
        metric, colour = f"samples/{headline}", HEADLINE_COLOURS[headline]
        points = [(step, row[metric]) for step, row in history if metric in row]
        if not points:
            continue
        steps, scores = zip(*points, strict=True)
        axes.plot(step_position(steps), scores, "o-", markersize=3.5, color=colour, label=headline)
        for kind in ("reference", "ceiling", "chance"):
            value = levels.means(kind).get(metric)
            if value is not None:
                level_line(axes, kind, value, colour)
    claim_lines(axes, last_step)
    style_step_axis(axes, last_step)
    axes.set_ylim(0, 1.03)
    axes.set_title("Reader accuracy on samples")
    axes.legend(loc="lower right")


def record_figure(path: Path, record: Record, title: str = "") -> None:
    """Every arm's curves with the spread of its seeds, S90 marks with intervals, and the S90 table."""
    headlines = record.headlines
    rows = s90_rows(record)
    with new_figure(10.0, 6.6 + 0.26 * len(rows), path) as figure:
        grid = figure.add_gridspec(3, len(headlines), height_ratios=[2.7, 2.7, 0.3 * len(rows)])
        for i, headline in enumerate(headlines):
            metric_axes = figure.add_subplot(grid[0, i])
            _draw_metric(metric_axes, record, headline)
            gap_axes = figure.add_subplot(grid[1, i])
            _draw_recovery(gap_axes, record, headline)
            if i == 0:
                metric_axes.set_ylabel("reader accuracy" if record.has_samples else "held-out loss")
                gap_axes.set_ylabel("gap closed")
        _draw_table(figure.add_subplot(grid[2, :]), rows)
        kinds = [kind for kind in LEVEL_STYLES if _level(record, kind, headlines)]
        level_legend(figure, kinds, [(arm, arm_colour(arm, record.arms)) for arm in record.arms])
        if title:
            figure.suptitle(title, fontsize=11, x=0.01, ha="left")


def _metric(headline: str) -> str:
    return f"samples/{headline}" if headline in SAMPLE_HEADLINES else f"heldout/{headline}"


def _level(record: Record, kind: str, headlines: Sequence[str]) -> bool:
    return any(_metric(headline) in record.levels.means(kind) for headline in headlines)


def _draw_metric(axes: Axes, record: Record, headline: str) -> None:
    metric = _metric(headline)
    for arm in record.arms:
        runs = record.select(arm)
        table = np.array([[row[metric] for row in run.metrics] for run in runs])
        _draw_spread(axes, runs[0].steps, table, arm_colour(arm, record.arms))
    for kind in LEVEL_STYLES:
        value = record.levels.means(kind).get(metric)
        if value is not None:
            level_line(axes, kind, value)
    claim_lines(axes, record.last_step)
    style_step_axis(axes, record.last_step, with_label=False)
    if headline in SAMPLE_HEADLINES:
        axes.set_ylim(0, 1.03)
    axes.set_title(headline if headline in SAMPLE_HEADLINES else _BANDS[headline])


def _draw_recovery(axes: Axes, record: Record, headline: str) -> None:
    axes.axhline(THRESHOLD, color=MUTED, linewidth=0.8)
    is_judged = record.is_judged(headline)
    if not is_judged:
        axes.text(0.5, 0.5, "not judged", transform=axes.transAxes, ha="center", color=MUTED)
    for arm in record.arms if is_judged else []:
        colour = arm_colour(arm, record.arms)
        steps, recovery = record.recovery(record.select(arm), headline)
        _draw_spread(axes, steps, recovery, colour)
        result = record.s90(arm, headline)
        if math.isfinite(result.median):
            high = min(result.high, record.last_step)
            y = THRESHOLD
            axes.plot(step_position([result.low, high]), [y, y], color=colour, linewidth=4, alpha=0.35)
            axes.plot(
                step_position([result.median]), [y], "D", color=colour, markersize=6, markeredgecolor="white"
            )
            axes.plot(step_position([result.median] * 2), [0, y], color=colour, linewidth=0.8, alpha=0.5)
    claim_lines(axes, record.last_step)
    style_step_axis(axes, record.last_step)
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.25, 0.5, 0.75, THRESHOLD], ["0", "25 %", "50 %", "75 %", "90 %"])
    axes.set_title(TITLES[headline])


def _draw_spread(axes: Axes, steps: Sequence[int], table: np.ndarray, colour: str) -> None:
    """Median over seeds as a line, least and greatest seed as a band."""
    x = step_position(steps)
    axes.fill_between(x, table.min(0), table.max(0), color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, np.median(table, axis=0), color=colour)


def _draw_table(axes: Axes, rows: Sequence[Sequence[str]]) -> None:
    axes.set_axis_off()
    table = axes.table(
        cellText=[list(row) for row in rows[1:]],
        colLabels=list(rows[0]),
        loc="center",
        cellLoc="left",
        colLoc="left",
        bbox=Bbox([[0.0, 0.0], [1.0, 1.0]]),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.auto_set_column_width(list(range(len(rows[0]))))
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor(RULE)
        cell.visible_edges = "B"
        if row == 0:
            cell.set_text_props(weight="bold")
