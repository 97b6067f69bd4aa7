"""What a record says: S90 per arm and the learning-rate sweeps.

Tables are Markdown of at most 100 columns.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sana_train.evaluation.convergence.s90 import s90
from sana_train.evaluation.record import Record, measured_samples

TITLES = {
    "semantic": "S90-semantic",
    "colour": "S90-colour",
    "texture": "S90-texture",
    "loss_high": "S90 high noise",
    "loss_low": "S90 low noise",
}


@dataclass(frozen=True)
class SweepPoint:
    """One learning rate of one arm's sweep.

    Attributes:
        s90: median of the sweep's headline; infinity = not reached, NaN = no gap to close.
        final_recovery: fraction of the gap closed at the last step.
        is_edge: the first or the last rate of the sweep; a better one may lie beyond it.
    """

    arm: str
    lr: float
    num_seeds: int
    s90: float
    final_recovery: float
    is_edge: bool

    @property
    def has_gap(self) -> bool:
        return not math.isnan(self.s90)


def sweep(record: Record, arm: str) -> list[SweepPoint]:
    """Every learning rate of an arm's sweep, ascending, judged by ``sweep_headline``.

    Against the sweep's own step 0 of ``random``, so that full runs added later change no choice.
    """
    headline = sweep_headline(record)
    sweeps = [run for run in record.runs if run.is_sweep]
    if any(run.arm == "random" for run in sweeps):
        record = Record(sweeps, record.levels)
    points = []
    lrs = sorted({run.lr for run in record.runs if run.arm == arm and run.is_sweep})
    for lr in lrs:
        runs = [run for run in record.runs if run.arm == arm and run.is_sweep and run.lr == lr]
        steps, curves = record.curves(runs, headline)
        _, recovery = record.recovery(runs, headline)
        result = s90(steps, curves, num_draws=1)
        end, is_edge = float(recovery[:, -1].mean()), lr in (lrs[0], lrs[-1])
        points.append(SweepPoint(arm, lr, len(runs), result.median, end, is_edge))
    return points


def sweep_headline(record: Record) -> str:
    """Semantics, or the high-noise band where sweeps were run without samples."""
    return "semantic" if measured_samples([run for run in record.runs if run.is_sweep]) else "loss_high"


def choose_lr(points: Sequence[SweepPoint], broken_rates: Collection[float] = ()) -> SweepPoint:
    """The learning rate that gets there first; among those that do not, the one that got furthest.

    One that ``is_edge`` was chosen for want of a better: the arm is not tuned before its sweep is wider.

    Args:
        broken_rates: no candidates, as a full run broke off there (``Record.broken_rates``).

    Raises:
        ValueError: there is no sweep, its headline has no gap to close, or every rate is broken.
    """
    if not points:
        raise ValueError("there is no sweep to choose a learning rate from")
    if not all(point.has_gap for point in points):
        raise ValueError(
            f"the sweep of {points[0].arm} has no gap to close: the native reference in levels.npz is no "
            "better than the zero level; measure it again on the same clips"
        )
    candidates = [point for point in points if point.lr not in broken_rates]
    if not candidates:
        raise ValueError(
            f"a full run of {points[0].arm} broke off at every rate of its sweep; sweep lower ones"
        )
    return min(candidates, key=lambda point: (point.s90, -point.final_recovery))


def is_tuned(record: Record, arm: str) -> bool:
    """Whether the arm's full runs use the best rate that holds, and that is not at its sweep's edge."""
    points = sweep(record, arm)
    if not points or not all(point.has_gap for point in points):
        return False
    broken = record.broken_rates(arm)
    if all(point.lr in broken for point in points):
        return False
    best = choose_lr(points, broken)
    return not best.is_edge and all(run.lr == best.lr for run in record.select(arm))


def judged(record: Record) -> Record:
    """The record with full runs of each arm at the rate that its sweep chose, where there are any.

    Full runs at other rates are left out, unless one broke off there: that is evidence against the rate.
    """
    for arm in record.arms:
        points, broken = sweep(record, arm), record.broken_rates(arm)
        if any(point.has_gap and point.lr not in broken for point in points):
            chosen = choose_lr(points, broken).lr
            if any(run.lr == chosen for run in record.select(arm)):
                record = record.without(arm, _rates(record, arm) - {chosen})
    return record


def s90_rows(record: Record) -> list[list[str]]:
    """S90 per arm, the head first: median over seeds [95 % bootstrap over seeds and clips].

    Full runs at rates that the arm's sweep did not choose have rows of their own.
    """
    rows = [["arm", "lr", "seeds", *(TITLES[name] for name in record.headlines)]]
    chosen, others = judged(record), other_rates(record)
    for arm in record.arms:
        rows.append(_s90_row(chosen, arm, arm))
        rows += [_s90_row(alone, arm, f"{arm}, other lr") for name, alone in others if name == arm]
    return rows


def other_rates(record: Record) -> list[tuple[str, Record]]:
    """(arm, the record with its full runs at one rate alone), for every rate that ``judged`` leaves out."""
    chosen = judged(record)
    return [
        (arm, record.without(arm, _rates(record, arm) - {lr}))
        for arm in record.arms
        for lr in sorted(_rates(record, arm) - _rates(chosen, arm))
    ]


def _rates(record: Record, arm: str) -> set[float]:
    """Learning rates of the full runs that the arm is judged by."""
    return {run.lr for run in record.select(arm)}


def _s90_row(record: Record, arm: str, title: str) -> list[str]:
    lrs = "/".join(f"{lr:g}" for lr in sorted(_rates(record, arm)))
    cells = [
        record.s90(arm, name).text(record.last_step) if record.is_judged(name) else "not judged"
        for name in record.headlines
    ]
    return [title, lrs, str(len(record.select(arm))), *cells]


def s90_table(record: Record) -> str:
    return markdown_table(s90_rows(record))


def sweep_table(record: Record) -> str:
    """All sweeps, with the chosen learning rate of each arm marked, and whether it is at the edge."""
    rows = [["arm", "lr", "seeds", TITLES[sweep_headline(record)], "recovery at the end", "chosen"]]
    for arm in dict.fromkeys(run.arm for run in record.runs if run.is_sweep):
        points, broken = sweep(record, arm), record.broken_rates(arm)
        is_open = all(point.has_gap for point in points) and any(point.lr not in broken for point in points)
        best = choose_lr(points, broken) if is_open else None
        for point in points:
            mark = "" if point is not best else "<- edge, not tuned" if point.is_edge else "<-"
            mark = "breaks off in full runs" if point.lr in broken else mark
            rows.append([arm, f"{point.lr:g}", str(point.num_seeds), *_measured(point), mark])
    return markdown_table(rows)


def _measured(point: SweepPoint) -> list[str]:
    """S90 and final recovery as text."""
    if not point.has_gap:
        return ["no gap", ""]
    return [
        "not reached" if math.isinf(point.s90) else f"{point.s90:,.0f}",
        f"{point.final_recovery:.0%}" if math.isfinite(point.final_recovery) else "diverged",
    ]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first one the head, as an aligned Markdown table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
