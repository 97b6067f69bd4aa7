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
MIN_SAMPLES = 256  # below, a few clips more or less are what colour and texture differ by

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

    Without samples the high-noise band stands for semantics; without ``MIN_SAMPLES`` of them it stands
    beside it. Texture is not judged then.
    """
    if run_curves(history, levels, "semantic") is None:
        return f"{_band(history, levels)}; texture: not judged"
    num_samples = len(levels.reference["samples/semantic"])
    if num_samples < MIN_SAMPLES:
        semantic = _answer(history, levels, "semantic", SEMANTIC_STEP)
        return (
            f"semantics back by {SEMANTIC_STEP}? {semantic}, by {num_samples} samples; "
            f"{_band(history, levels)}; texture: not judged"
        )
    parts = [
        f"{subject} back by {step:,}? {_answer(history, levels, headline, step)}"
        for subject, headline, step in (
            ("semantics", "semantic", SEMANTIC_STEP),
            ("colour", "colour", TEXTURE_STEP),
            ("texture", "texture", TEXTURE_STEP),
        )
    ]
    return "; ".join(parts)


def _band(history: History, levels: Levels) -> str:
    return f"high-noise band back by {SEMANTIC_STEP}? {_answer(history, levels, 'loss_high', SEMANTIC_STEP)}"


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
