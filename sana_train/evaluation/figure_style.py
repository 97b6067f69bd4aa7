"""One look for every figure: palette, step axis, reference lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from sana_train.utils.files import publish_file

INK = "#1f2933"
MUTED = "#7b8794"
RULE = "#e4e7eb"
CurveStyle = Literal["-", "--"]
HEADLINE_COLOURS = {
    "semantic": "#4353b8",
    "colour": "#c2407e",
    "texture": "#b7791f",
    "loss_high": "#4353b8",
    "loss_low": "#b7791f",
}
_ARM_COLOURS = {"random": "#2b6cb0", "scratch": "#dd6b20", "linear_probe": "#2f855a"}
_MORE_COLOURS = ("#805ad5", "#b83280", "#00838f", "#8d6e63", "#5a6772")
_TICKS = (0, 10, 100, 500, 5000, 50_000, 500_000)  # far enough apart for a narrow panel
CLAIMED_STEPS = (500, 5000)
_CLAIM_STYLE: dict[str, Any] = {"color": MUTED, "linewidth": 0.8, "linestyle": (0, (1, 2))}
LEVEL_STYLES: dict[str, tuple[str, Any]] = {  # kind -> label, dashes
    "reference": ("native reference", "-"),
    "ceiling": ("VAE ceiling", (0, (6, 2))),
    "zero": ("zero level", (0, (4, 2, 1, 2))),
    "chance": ("chance", (0, (3, 3))),
}
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "legend.frameon": True,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
}


@contextmanager
def new_figure(width_in: float, height_in: float, path: Path, dpi: int = 150) -> Iterator[Figure]:
    """A figure on its own canvas (no global state), written to ``path`` as PNG when the block ends."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in), dpi=dpi, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        yield figure
        # Not savefig: it draws twice, packs at zlib's slow default and keeps an empty alpha channel.
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        with publish_file(path) as scratch:
            picture.save(scratch, format="png", dpi=(dpi, dpi), compress_level=4)


def arm_colour(arm: str, arms: Sequence[str]) -> str:
    """The same colour for an arm in every figure; arms beyond the three known take the next free one."""
    if arm in _ARM_COLOURS:
        return _ARM_COLOURS[arm]
    others = [name for name in arms if name not in _ARM_COLOURS]
    return _MORE_COLOURS[others.index(arm) % len(_MORE_COLOURS)]


def step_position(steps: Sequence[float]) -> np.ndarray:
    """Where steps lie on the axis: log(1 + step), so that step 0 is on it."""
    return np.log1p(np.asarray(steps, dtype=np.float64))


def style_step_axis(axes: Axes, last_step: int, *, with_label: bool = True) -> None:
    ticks = [tick for tick in _TICKS if tick <= last_step]
    labels = [f"{tick // 1000}k" if tick >= 1000 else str(tick) for tick in ticks]
    axes.set_xticks(step_position(ticks), labels)
    axes.set_xlim(-0.1, float(step_position([last_step])[0]) * 1.02 + 0.05)
    axes.grid(visible=False, axis="x")
    if with_label:
        axes.set_xlabel("optimiser steps (log scale)")


def claim_lines(axes: Axes, last_step: int) -> None:
    """Where the paper says that semantics (500) and colour and texture (5,000) are back."""
    for step in CLAIMED_STEPS:
        if step <= last_step:
            axes.axvline(float(step_position([step])[0]), **_CLAIM_STYLE)


def level_line(axes: Axes, kind: str, value: float, colour: str = MUTED) -> None:
    """A horizontal line of one of ``LEVEL_STYLES``."""
    axes.axhline(value, color=colour, linewidth=1.1, linestyle=LEVEL_STYLES[kind][1], zorder=1.5)


def level_legend(
    figure: Figure, kinds: Sequence[str], extra: Iterable[tuple[str, str, CurveStyle]] = ()
) -> None:
    """One legend below the figure: curves of ``extra`` (label, colour, line style), then the fixed lines."""
    handles = [Line2D([], [], color=colour, linestyle=style, label=label) for label, colour, style in extra]
    for kind in kinds:
        label, dashes = LEVEL_STYLES[kind]
        handles.append(Line2D([], [], color=MUTED, linestyle=dashes, linewidth=1.1, label=label))
    handles.append(Line2D([], [], label="steps claimed by the paper", **_CLAIM_STYLE))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), handlelength=2.6)
