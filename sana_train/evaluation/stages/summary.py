"""Means over clips with bootstrap intervals, and differences of columns on the same clips.

Legend: n clips, K draws. Per-clip arrays are (n,), NaN where a metric does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from sana_train.evaluation.record_tables import markdown_table

Array = NDArray[np.float64]
# What is subtracted: stage 2 less what it began as, and less what can be had without an adaptation.
DIFFERENCES = (("stage2", "stage1"), ("clip_stage2", "clip_stage1"), ("stage2", "transcoded"))
_DECIMALS = {"psnr_db": 2, "ssim": 4}


@dataclass(frozen=True)
class Mean:
    """Of the clips that a metric applies to.

    Attributes:
        mean: of these.
        low, high: 2.5 % and 97.5 % quantiles of the mean over draws of clips.
        num_clips: how many.
    """

    mean: float
    low: float
    high: float
    num_clips: int

    def text(self, decimals: int, *, has_sign: bool = False) -> str:
        sign = "+" if has_sign else ""
        return f"{self.mean:{sign}.{decimals}f} [{self.low:.{decimals}f}, {self.high:.{decimals}f}]"


class Bootstrap:
    """Draws of clips with replacement, the same for every metric, as all are of the same clips."""

    def __init__(self, num_clips: int, num_draws: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        even = np.full(num_clips, 1 / num_clips)
        self.weights = rng.multinomial(num_clips, even, size=num_draws).astype(np.float64)  # (K, n)

    def mean(self, values: Array) -> Mean | None:
        """None for a metric that applies to no clip."""
        applies = ~np.isnan(values)
        if not applies.any():
            return None
        with np.errstate(invalid="ignore"):  # a draw without any clip that it applies to is left out
            draws = self.weights @ np.where(applies, values, 0.0) / (self.weights @ applies)
        low, high = np.nanquantile(draws, (0.025, 0.975))
        return Mean(float(values[applies].mean()), float(low), float(high), int(applies.sum()))


def summarise(
    per_clip: Mapping[str, Array], num_draws: int, seed: int
) -> tuple[dict[str, dict[str, Mean]], dict[str, dict[str, Mean]]]:
    """(column -> metric -> mean, ``a - b`` -> metric -> mean of the paired difference)."""
    bootstrap = Bootstrap(len(next(iter(per_clip.values()))), num_draws, seed)
    columns: dict[str, dict[str, Mean]] = {}
    for key, values in per_clip.items():
        column, _, metric = key.partition("/")
        mean = bootstrap.mean(values)
        if mean is not None:
            columns.setdefault(column, {})[metric] = mean
    differences: dict[str, dict[str, Mean]] = {}
    for after, before in DIFFERENCES:
        for metric in columns.get(after, {}):
            if metric not in columns.get(before, {}):
                continue
            difference = bootstrap.mean(per_clip[f"{after}/{metric}"] - per_clip[f"{before}/{metric}"])
            if difference is not None:
                differences.setdefault(f"{after} - {before}", {})[metric] = difference
    return columns, differences


def as_json(means: Mapping[str, Mapping[str, Mean]]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {metric: asdict(mean) for metric, mean in metrics.items()} for name, metrics in means.items()
    }


def rows_of(
    columns: Mapping[str, Mapping[str, Mean]], differences: Mapping[str, Mapping[str, Mean]]
) -> list[list[str]]:
    """Head and one row per column and metric: short lines, however many columns there are."""
    rows = [["column", "metric", "mean [95 %]", "clips"]]
    for means, has_sign in ((columns, False), (differences, True)):
        for name, metrics in means.items():
            for metric, mean in metrics.items():
                text = mean.text(_DECIMALS.get(metric, 3), has_sign=has_sign)
                rows.append([name, metric, text, str(mean.num_clips)])
    return rows


def table(rows: Sequence[Sequence[str]], heading: str) -> str:
    return f"# {heading}\n\n{markdown_table(rows)}\n"
