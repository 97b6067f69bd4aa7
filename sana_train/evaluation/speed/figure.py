"""The cost of an evaluation against the length of the clip, with what a linear cost would be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sana_train.evaluation.figure_style import INK, MUTED, arm_colour, new_figure

SOFTMAX = "softmax"
_SOFTMAX_COLOUR = "#dd6b20"


def exponent(tokens: list[int], ms: list[float]) -> float:
    """p of ms ~ tokens^p over the three longest clips, where what does not depend on length is least."""
    return float(np.polyfit(np.log(tokens[-3:]), np.log(ms[-3:]), 1)[0])


def curves(content: Mapping[str, Any]) -> dict[str, tuple[list[int], list[int], list[float]]]:
    """Way -> (frames, tokens, ms) of what was measured, ascending."""
    found: dict[str, tuple[list[int], list[int], list[float]]] = {}
    rows = [row for row in content["rows"] if row["group"] == "frames" and not row["error"]]
    for row in sorted(rows, key=lambda row: row["frames"]):
        curve = found.setdefault(row["way"], ([], [], []))
        for values, value in zip(curve, (row["frames"], row["num_tokens"], row["ms"]), strict=True):
            values.append(value)
    return {way: curve for way, curve in found.items() if len(curve[0]) > 1}


def frames_figure(content: Mapping[str, Any], path: Path) -> bool:
    """Write the PNG; False, and no file, if fewer than two lengths were measured."""
    measured = curves(content)
    if not measured:
        return False
    facts = content["facts"]
    height_px, width_px, _ = facts["clip"].split("x")
    with new_figure(7.0, 4.8, path) as figure:
        axes = figure.subplots()
        ways = [way for way in measured if way != SOFTMAX]
        for way, (frames, tokens, ms) in measured.items():
            colour = _SOFTMAX_COLOUR if way == SOFTMAX else arm_colour(way, ways)
            name = "softmax attention of the same width" if way == SOFTMAX else f"linear attention, {way}"
            label = f"{name}: tokens^{exponent(tokens, ms):.2f}"
            marker = "s" if way == SOFTMAX else "o"
            axes.plot(frames, ms, marker=marker, markersize=4, color=colour, label=label)
            if way != SOFTMAX:  # through the longest clip and the origin
                line = [ms[-1] * count / tokens[-1] for count in tokens]
                axes.plot(frames, line, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1.5)
        axes.plot([], [], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), label="proportional to tokens")
        axes.set_xlabel("frames of the clip")
        axes.set_ylabel("ms of one evaluation, batch 1")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_title(f"Cost against length, {width_px}x{height_px} px, {facts['device']}", color=INK)
        figure.legend(loc="outside lower center", ncols=1)
    return True
