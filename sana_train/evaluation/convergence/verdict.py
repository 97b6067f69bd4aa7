"""The verdict line of one run: semantics back by 500 steps, colour and texture by 5,000?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sana_train.evaluation.convergence.levels import Levels
from sana_train.evaluation.convergence.s90 import (
    HEADLINES,
    HIGHER_IS_BETTER,
    Curve,
    has_gap,
    recovery_curves,
    steps_to_recovery,
)

SEMANTIC_STEP = 500
TEXTURE_STEP = 5000

History = Sequence[tuple[int, Mapping[str, float]]]


def run_curves(history: History, levels: Levels, headline: str) -> tuple[list[int], list[Curve]] | None:
    """(steps, a curve per metric of a headline) along a run's means; None where it was not measured.

    Args:
        history: (step, metrics) per evaluation, in order.
        levels: the sample headlines' zero level is step 0 of this run where ``levels`` has none.
    """
    metrics = HEADLINES[headline]
    rows = [(step, row) for step, row in history if all(name in row for name in metrics)]
    if not rows:
        return None
    zero, reference = levels.means("zero"), levels.means("reference")
    if rows[0][0] == 0 and metrics[0].startswith("samples/"):
        zero = {name: rows[0][1][name] for name in metrics} | zero
    if not all(name in zero and name in reference for name in metrics):
        return None
    curves = [
        Curve(
            np.array([[[row[name]] for _, row in rows]]),
            np.array([zero[name]]),
            np.array([reference[name]]),
            name in HIGHER_IS_BETTER,
        )
        for name in metrics
    ]
    return [step for step, _ in rows], curves


def verdict(history: History, levels: Levels) -> str:
    """One line, e.g. ``semantics back by 500? yes (97 % at 500, S90 312); ...``.

    Without samples the high-noise band stands for semantics and texture is not judged.
    """
    if run_curves(history, levels, "semantic") is None:
        band = _answer(history, levels, "loss_high", SEMANTIC_STEP)
        return f"high-noise band back by {SEMANTIC_STEP}? {band}; texture: not judged"
    parts = [
        f"{subject} back by {step:,}? {_answer(history, levels, headline, step)}"
        for subject, headline, step in (
            ("semantics", "semantic", SEMANTIC_STEP),
            ("colour", "colour", TEXTURE_STEP),
            ("texture", "texture", TEXTURE_STEP),
        )
    ]
    return "; ".join(parts)


def _answer(history: History, levels: Levels, headline: str, by_step: int) -> str:
    measured = run_curves(history, levels, headline)
    if measured is None:
        return "not judged (no zero level or no native reference)"
    steps, curves = measured
    if not has_gap(curves):
        return "not judged (no gap: the native reference is no better than the zero level)"
    recovery = recovery_curves(curves)[0, 0].tolist()
    reached = steps_to_recovery(steps, recovery)
    last = min(max(steps), by_step)
    seen = max(i for i, step in enumerate(steps) if step <= last)
    closed = f"{recovery[seen]:.0%}" if math.isfinite(recovery[seen]) else "diverged"
    share = f"{closed} at {steps[seen]:,}"
    if reached <= by_step:
        return f"yes ({share}, S90 {reached:,.0f})"
    if max(steps) < by_step:
        return f"not yet ({share}, the run stopped there)"
    late = "not reached" if math.isinf(reached) else f"{reached:,.0f}"
    return f"no ({share}, S90 {late})"
