"""Several arms of a record: curves with the spread of their seeds, and the S90 table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from sana_train.evaluation.convergence.s90 import SAMPLE_HEADLINES, THRESHOLD
from sana_train.evaluation.figure_style import (
    LEVEL_STYLES,
    MUTED,
    RULE,
    CurveStyle,
    arm_colour,
    claim_lines,
    level_legend,
    level_line,
    new_figure,
    step_position,
    style_step_axis,
)
from sana_train.evaluation.figures import BANDS
from sana_train.evaluation.record import Record, Run
from sana_train.evaluation.record_tables import TITLES, judged, other_rates, s90_rows

_OTHER_STYLE: CurveStyle = "--"


def record_figure(path: Path, record: Record, title: str = "") -> None:
    """Every arm's curves with the spread of its seeds, S90 marks with intervals, and the S90 table.

    Curves are of the rate that an arm is judged at; those at others are dashed, seeds' medians alone.
    """
    headlines = record.headlines
    rows, others = s90_rows(record), other_rates(record)
    record = judged(record)
    with new_figure(10.0, 6.6 + 0.26 * len(rows), path) as figure:
        grid = figure.add_gridspec(3, len(headlines), height_ratios=[2.7, 2.7, 0.3 * len(rows)])
        for i, headline in enumerate(headlines):
            metric_axes = figure.add_subplot(grid[0, i])
            _draw_metric(metric_axes, record, headline, others)
            gap_axes = figure.add_subplot(grid[1, i])
            _draw_recovery(gap_axes, record, headline, others)
            if i == 0:
                metric_axes.set_ylabel("reader accuracy" if record.has_samples else "held-out loss")
                gap_axes.set_ylabel("gap closed")
        _draw_table(figure.add_subplot(grid[2, :]), rows)
        kinds = [kind for kind in LEVEL_STYLES if _level(record, kind, headlines)]
        level_legend(figure, kinds, _legend(record, others))
        if title:
            figure.suptitle(title, fontsize=11, x=0.01, ha="left")


def _legend(record: Record, others: Sequence[tuple[str, Record]]) -> Iterator[tuple[str, str, CurveStyle]]:
    """(label, colour, line style) of every kind of curve."""
    for arm in record.arms:
        yield arm, arm_colour(arm, record.arms), "-"
    for arm in dict.fromkeys(arm for arm, _ in others):
        yield f"{arm}, other lr", arm_colour(arm, record.arms), _OTHER_STYLE


def _metric(headline: str) -> str:
    return f"samples/{headline}" if headline in SAMPLE_HEADLINES else f"heldout/{headline}"


def _level(record: Record, kind: str, headlines: Sequence[str]) -> bool:
    return any(_metric(headline) in record.levels.means(kind) for headline in headlines)


def _draw_metric(axes: Axes, record: Record, headline: str, others: Sequence[tuple[str, Record]]) -> None:
    metric = _metric(headline)
    for arm, runs, is_other in _curves(record, others):
        table = np.array([[row[metric] for row in run.metrics] for run in runs])
        _draw_spread(axes, runs[0].steps, table, arm_colour(arm, record.arms), is_other)
    for kind in LEVEL_STYLES:
        value = record.levels.means(kind).get(metric)
        if value is not None:
            level_line(axes, kind, value)
    claim_lines(axes, record.last_step)
    style_step_axis(axes, record.last_step, with_label=False)
    if headline in SAMPLE_HEADLINES:
        axes.set_ylim(0, 1.03)
    axes.set_title(headline if headline in SAMPLE_HEADLINES else BANDS[headline])


def _curves(record: Record, others: Sequence[tuple[str, Record]]) -> Iterator[tuple[str, list[Run], bool]]:
    """(arm, full runs, whether they are at another rate than the arm is judged at)."""
    yield from ((arm, record.select(arm), False) for arm in record.arms)
    yield from ((arm, alone.select(arm), True) for arm, alone in others)


def _draw_recovery(axes: Axes, record: Record, headline: str, others: Sequence[tuple[str, Record]]) -> None:
    axes.axhline(THRESHOLD, color=MUTED, linewidth=0.8)
    is_judged = record.is_judged(headline)
    if not is_judged:
        axes.text(0.5, 0.5, "not judged", transform=axes.transAxes, ha="center", color=MUTED)
    for arm, runs, is_other in _curves(record, others) if is_judged else []:
        colour = arm_colour(arm, record.arms)
        steps, recovery = record.recovery(runs, headline)
        _draw_spread(axes, steps, recovery, colour, is_other)
        if is_other:
            continue
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


def _draw_spread(
    axes: Axes, steps: Sequence[int], table: np.ndarray, colour: str, is_other: bool = False
) -> None:
    """Median over seeds as a line, least and greatest seed as a band; dashed and alone for other rates."""
    x = step_position(steps)
    if is_other:
        axes.plot(x, np.median(table, axis=0), color=colour, linestyle=_OTHER_STYLE, linewidth=1.1)
        return
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
