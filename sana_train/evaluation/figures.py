"""Convergence of one run in the manner of the paper's Figure 6."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from sana_train.evaluation.convergence.levels import Levels
from sana_train.evaluation.convergence.s90 import SAMPLE_HEADLINES
from sana_train.evaluation.convergence.verdict import History, verdict
from sana_train.evaluation.figure_style import (
    HEADLINE_COLOURS,
    LEVEL_STYLES,
    claim_lines,
    level_legend,
    level_line,
    new_figure,
    step_position,
    style_step_axis,
)
from sana_train.evaluation.strips import frame_grid, show_grid
from sana_train.evaluation.video_stats import comparison_frames

_LOSS_LEVELS = ("zero", "reference")
BANDS = {"loss_high": "high noise (semantics)", "loss_low": "low noise (texture)"}


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
    for headline, label in BANDS.items():
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
