"""What a record says: S90 per arm, the gate of the tiny world, the learning-rate sweep.

Tables are Markdown of at most 100 columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sana_train.evaluation.convergence.s90 import S90, SAMPLE_HEADLINES, s90
from sana_train.evaluation.record import Record, measured_samples

SCRATCH_RATIO = 4.0
TEXTURE_RATIO = 3.0
TITLES = {
    "semantic": "S90-semantic",
    "colour": "S90-colour",
    "texture": "S90-texture",
    "loss_high": "S90 high noise",
    "loss_low": "S90 low noise",
}


@dataclass(frozen=True)
class Ratio:
    """A ratio of median S90s; a lower bound where the numerator was not reached."""

    value: float
    is_lower_bound: bool
    wanted: float

    @property
    def passed(self) -> bool:
        return self.value >= self.wanted

    def __str__(self) -> str:
        return f"{'>= ' if self.is_lower_bound else ''}{self.value:.1f}x"


@dataclass(frozen=True)
class Gate:
    """Is the world hard enough that adapting is not relearning?

    Attributes:
        scratch: S90-semantic of ``scratch`` over that of ``random``.
        texture: S90-texture over S90-semantic of ``random``.
        random_semantic, random_texture: ``random`` got there on every seed.
    """

    scratch: Ratio
    texture: Ratio
    random_semantic: bool
    random_texture: bool

    @property
    def passed(self) -> bool:
        return self.scratch.passed and self.texture.passed and self.random_semantic and self.random_texture


def gate(record: Record) -> Gate:
    """The gate, with a median not reached counted as the last step of the grid."""
    semantic, texture = record.s90("random", "semantic"), record.s90("random", "texture")
    scratch = record.s90("scratch", "semantic")
    return Gate(
        _ratio(scratch, semantic, record.last_step, SCRATCH_RATIO),
        _ratio(texture, semantic, record.last_step, TEXTURE_RATIO),
        all(math.isfinite(value) for value in semantic.per_seed),
        all(math.isfinite(value) for value in texture.per_seed),
    )


def _ratio(slow: S90, fast: S90, last_step: int, wanted: float) -> Ratio:
    below = max(1.0, min(fast.median, last_step))  # S90 may be 0
    return Ratio(min(slow.median, last_step) / below, math.isinf(slow.median), wanted)


@dataclass(frozen=True)
class SweepPoint:
    """One learning rate of one arm's sweep: median S90 of its headline and recovery at the end."""

    arm: str
    lr: float
    num_seeds: int
    s90: float
    final_recovery: float


def sweep(record: Record, arm: str) -> list[SweepPoint]:
    """Every learning rate of an arm's sweep, ascending, judged by ``sweep_headline``.

    Against the sweep's own step 0 of ``random``, so that full runs added later change no choice.
    """
    headline = sweep_headline(record)
    sweeps = [run for run in record.runs if run.is_sweep]
    if any(run.arm == "random" for run in sweeps):
        record = Record(sweeps, record.levels)
    points = []
    for lr in sorted({run.lr for run in record.runs if run.arm == arm and run.is_sweep}):
        runs = [run for run in record.runs if run.arm == arm and run.is_sweep and run.lr == lr]
        steps, curves = record.curves(runs, headline)
        _, recovery = record.recovery(runs, headline)
        result = s90(steps, curves, num_draws=1)
        points.append(SweepPoint(arm, lr, len(runs), result.median, float(recovery[:, -1].mean())))
    return points


def sweep_headline(record: Record) -> str:
    """Semantics, or the high-noise band where sweeps were run without samples."""
    return "semantic" if measured_samples([run for run in record.runs if run.is_sweep]) else "loss_high"


def choose_lr(points: Sequence[SweepPoint]) -> SweepPoint:
    """The learning rate that gets there first; among those that do not, the one that got furthest."""
    if not points:
        raise ValueError("there is no sweep to choose a learning rate from")
    return min(points, key=lambda point: (point.s90, -point.final_recovery))


def s90_rows(record: Record) -> list[list[str]]:
    """S90 per arm, the head first: median over seeds [95 % bootstrap over seeds and clips]."""
    headlines = SAMPLE_HEADLINES if record.has_samples else ("loss_high", "loss_low")
    rows = [["arm", "lr", "seeds", *(TITLES[name] for name in headlines)]]
    for arm in record.arms:
        runs = record.select(arm)
        lrs = "/".join(f"{lr:g}" for lr in sorted({run.lr for run in runs}))
        cells = [record.s90(arm, name).text(record.last_step) for name in headlines]
        rows.append([arm, lrs, str(len(runs)), *cells])
    return rows


def s90_table(record: Record) -> str:
    return markdown_table(s90_rows(record))


def gate_table(record: Record) -> str:
    result = gate(record)
    checks = [
        (
            "scratch / random, S90-semantic",
            f">= {SCRATCH_RATIO:g}x",
            str(result.scratch),
            result.scratch.passed,
        ),
        ("random, texture / semantic", f">= {TEXTURE_RATIO:g}x", str(result.texture), result.texture.passed),
        ("random reaches S90-semantic", "every seed", "", result.random_semantic),
        ("random reaches S90-texture", "every seed", "", result.random_texture),
    ]
    rows = [[*check[:3], "yes" if check[3] else "no"] for check in checks]
    return markdown_table([["gate", "wanted", "measured", "passed"], *rows])


def sweep_table(record: Record) -> str:
    """All sweeps, with the chosen learning rate of each arm marked."""
    rows = [["arm", "lr", "seeds", TITLES[sweep_headline(record)], "recovery at the end", "chosen"]]
    for arm in dict.fromkeys(run.arm for run in record.runs if run.is_sweep):
        points = sweep(record, arm)
        best = choose_lr(points)
        for point in points:
            reached = "not reached" if math.isinf(point.s90) else f"{point.s90:,.0f}"
            recovery = f"{point.final_recovery:.0%}"
            mark = "<-" if point is best else ""
            rows.append([arm, f"{point.lr:g}", str(point.num_seeds), reached, recovery, mark])
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first one the head, as an aligned Markdown table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
