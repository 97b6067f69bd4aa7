"""S90: the step from which 90 % of the gap to the native reference stays closed.

    recovery(s) = (zero - m(s)) / (zero - reference)

The zero level is the best linear denoiser for loss bands and step 0 of the ``random`` arm for
samples; the reference is a network trained natively and long in the target space. A headline of
several metrics has recovered as far as the last of them: in an average, one that closes at once (the
spectrum, as soon as samples are no noise) would stand in for one that has not. Between
evaluations recovery is piecewise linear in log(1 + step), as the grid of steps is.

Legend: R seeds, G grid steps, n clips, K bootstrap draws. Metrics are per clip, NaN where a metric
does not apply to a clip, so that clips and seeds can be resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

THRESHOLD = 0.9

# Headline -> the metrics that must all recover.
HEADLINES: dict[str, tuple[str, ...]] = {
    "semantic": ("samples/semantic",),
    "colour": ("samples/colour", "samples/palette_delta_e"),
    "texture": ("samples/texture", "samples/spectrum_gap"),
    "loss_high": ("heldout/loss_high",),
    "loss_low": ("heldout/loss_low",),
}
SAMPLE_HEADLINES = ("semantic", "colour", "texture")
HIGHER_IS_BETTER = ("samples/semantic", "samples/colour", "samples/texture")


@dataclass(frozen=True)
class Curve:
    """One metric along training, with the two levels its recovery is measured between.

    Attributes:
        values: (R, G, n) per seed, step and clip.
        zero: (n,), or (1,) where only a mean is known.
        reference: (n,) or (1,).
        higher_is_better: which way the metric improves.
    """

    values: Array
    zero: Array
    reference: Array
    higher_is_better: bool = False


@dataclass(frozen=True)
class S90:
    """Steps to 90 % recovery; infinity = not reached on the grid.

    Attributes:
        per_seed: one value per seed.
        median: of ``per_seed``.
        low, high: 2.5 % and 97.5 % bootstrap quantiles of the median over seeds and clips.
        has_gap: False where the reference is no better than the zero level: there is nothing to
            recover, nothing was measured, and all numbers are NaN.
    """

    per_seed: tuple[float, ...]
    median: float
    low: float
    high: float
    has_gap: bool = True

    def text(self, last_step: float) -> str:
        """E.g. ``312 [287, 341]``, ``8120 [7400, >10000]``, ``not reached`` or ``no gap``."""
        if not self.has_gap:
            return "no gap"
        if math.isinf(self.median):
            return "not reached"

        def bound(value: float) -> str:
            return f">{last_step:.0f}" if math.isinf(value) else f"{value:.0f}"

        return f"{self.median:.0f} [{bound(self.low)}, {bound(self.high)}]"


def steps_to_recovery(
    steps: Sequence[float], recovery: Sequence[float], threshold: float = THRESHOLD
) -> float:
    """First step from which ``recovery`` stays at or above ``threshold``; infinity if never.

    Args:
        steps: increasing grid, from 0.
        recovery: fraction of the gap closed at each step; NaN and minus infinity (a diverged
            loss) count as not recovered.
    """
    if len(steps) != len(recovery) or not len(steps):
        raise ValueError(f"one recovery per step is needed, got {len(steps)} and {len(recovery)}")
    if any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"the grid of steps must increase, got {list(steps)}")
    below = [i for i, value in enumerate(recovery) if not value >= threshold]
    if not below:
        return float(steps[0])
    last = below[-1]
    if last == len(steps) - 1:
        return math.inf
    before, after = recovery[last], recovery[last + 1]
    if not math.isfinite(before):  # there is no line to interpolate on
        return float(steps[last + 1])
    share = (threshold - before) / (after - before)
    log_step = (1 - share) * math.log1p(steps[last]) + share * math.log1p(steps[last + 1])
    return math.expm1(log_step)


def recovery_curves(curves: Sequence[Curve], clip_weights: Array | None = None) -> Array:
    """Least recovery of any of ``curves``: (K, R, G), K = 1 without ``clip_weights``.

    Args:
        curves: the metrics of one headline.
        clip_weights: (K, n) how often each draw holds each clip.

    Minus infinity where a loss is infinite; NaN where there is no gap to close (``has_gap``).
    """
    least: Array = np.array(np.inf)
    for curve in curves:
        values = _weighted_mean(curve.values, clip_weights)  # (K, R, G)
        zero = _weighted_mean(curve.zero, clip_weights)[:, None, None]
        closed = values - zero if curve.higher_is_better else zero - values
        recovery = closed / _gap(curve, clip_weights)[:, None, None]
        least = np.minimum(least, recovery)  # NaN wins
    return least


def has_gap(curves: Sequence[Curve]) -> bool:
    """Whether the reference beats the zero level in every metric; otherwise nothing can be recovered."""
    return not any(np.isnan(_gap(curve, None)).any() for curve in curves)


def _gap(curve: Curve, clip_weights: Array | None) -> Array:
    """By how much the reference beats the zero level under each draw, (K,); NaN where it does not."""
    zero = _weighted_mean(curve.zero, clip_weights)
    reference = _weighted_mean(curve.reference, clip_weights)
    gap = reference - zero if curve.higher_is_better else zero - reference
    return np.where((gap > 0) & np.isfinite(gap), gap, np.nan)


def s90(steps: Sequence[float], curves: Sequence[Curve], num_draws: int = 1000, seed: int = 0) -> S90:
    """S90 per seed, its median, and the bootstrap interval of the median.

    Every draw resamples clips and seeds with replacement; all steps, both levels and all curves
    share a draw's clips, as they share the clips themselves. A draw in which the gap vanishes counts
    as not reached.
    """
    num_seeds = curves[0].values.shape[0]
    num_clips = max(curve.values.shape[-1] for curve in curves)
    for curve in curves:
        sizes = {array.shape[-1] for array in (curve.values, curve.zero, curve.reference)} - {1, num_clips}
        if sizes or curve.values.shape[:2] != (num_seeds, len(steps)):
            raise ValueError(
                f"curves of one headline share seeds, steps and clips: expected ({num_seeds}, {len(steps)}, "
                f"{num_clips}) values, got {curve.values.shape}, levels of {curve.zero.shape} and "
                f"{curve.reference.shape}"
            )
    if not has_gap(curves):
        return S90((math.nan,) * num_seeds, math.nan, math.nan, math.nan, has_gap=False)
    per_seed = [steps_to_recovery(steps, row) for row in recovery_curves(curves)[0]]
    rng = np.random.default_rng(seed)
    clip_weights = rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=num_draws)
    draws = recovery_curves(curves, clip_weights.astype(np.float64))
    table = np.array([[steps_to_recovery(steps, row) for row in draw] for draw in draws])  # (K, R)
    chosen = rng.integers(num_seeds, size=(num_draws, num_seeds))
    medians = np.array([_median(row) for row in np.take_along_axis(table, chosen, axis=1)])
    low, high = np.quantile(medians, (0.025, 0.975), method="closest_observation")
    return S90(tuple(per_seed), _median(per_seed), float(low), float(high))


def _median(values: Sequence[float] | Array) -> float:
    """Median where infinity is a value: an even number of them takes the later of the middle two."""
    return float(sorted(values)[len(values) // 2])


def _weighted_mean(values: Array, clip_weights: Array | None) -> Array:
    """Mean over the last axis under each row of weights, NaN left out: (..., n) -> (K, ...)."""
    num_clips = values.shape[-1]
    if clip_weights is None:
        clip_weights = np.ones((1, num_clips))
    elif num_clips == 1:  # only a mean is known: every draw is that mean
        clip_weights = np.ones((len(clip_weights), 1))
    applies = ~np.isnan(values)
    total = np.where(np.isfinite(values), values, 0.0) @ clip_weights.T  # (..., K)
    with np.errstate(invalid="ignore"):
        for infinity in (np.inf, -np.inf):  # apart, since 0 * infinity would spoil draws without the clip
            is_drawn = (values == infinity).astype(np.float64) @ clip_weights.T > 0
            total = np.where(is_drawn, total + infinity, total)
        mean = total / (applies.astype(np.float64) @ clip_weights.T)
    return np.moveaxis(mean, -1, 0)
