"""Passes of the loader benchmark as a table and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sana_train.evaluation.figure_style import new_figure
from sana_train.evaluation.loader_benchmark import Pass

MIN_RATIO = 0.97  # of webdataset's samples per second
MAX_SPREAD = 0.05  # of memory over a pass
_COLOURS = {"sana_train": "#2b6cb0", "webdataset": "#dd6b20"}


def summarise(passes: Sequence[Pass]) -> list[dict[str, Any]]:
    """A row for each path and number of workers.

    The ratio is the median of the rounds' ratios: within a round the two take turns, so that load which
    comes and goes on a shared machine hits both. Memory is judged by the median spread of our passes.
    """
    rows = []
    for path, workers in dict.fromkeys((each.path, each.num_workers) for each in passes):
        mine, theirs = (
            [p for p in passes if (p.path, p.num_workers, p.loader) == (path, workers, name)]
            for name in ("sana_train", "webdataset")
        )
        ratios = [ours.samples_per_s / other.samples_per_s for ours, other in zip(mine, theirs, strict=True)]
        spread = statistics.median(each.rss_spread for each in mine)
        rows.append(
            {
                "path": path,
                "num_workers": workers,
                "sana_train": statistics.median(each.samples_per_s for each in mine),
                "webdataset": statistics.median(each.samples_per_s for each in theirs),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "rss_mib": statistics.median(statistics.median(each.rss_mib) for each in mine),
                "rss_spread": spread,
                "webdataset_rss_spread": statistics.median(each.rss_spread for each in theirs),
                "is_fast_enough": statistics.median(ratios) >= MIN_RATIO,
                "is_flat": spread <= MAX_SPREAD,
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| path | workers | sana_train /s | webdataset /s | ratio | its range | MiB | spread | bars |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for row in rows:
        missed = [name for name, key in (("speed", "is_fast_enough"), ("memory", "is_flat")) if not row[key]]
        lines.append(
            f"| {row['path']} | {row['num_workers']} | {row['sana_train']:.1f} | {row['webdataset']:.1f} "
            f"| {row['ratio']:.3f} | {min(row['ratios']):.3f} .. {max(row['ratios']):.3f} "
            f"| {row['rss_mib']:.0f} | {row['rss_spread']:.1%} "
            f"| {'missed: ' + ', '.join(missed) if missed else 'held'} |"
        )
    return "\n".join(lines) + "\n"


def figure(path: Path, passes: Sequence[Pass]) -> None:
    """Samples per second and memory over a pass, every round a line; a column for each path and workers."""
    cases = list(dict.fromkeys((each.path, each.num_workers) for each in passes))
    with new_figure(3.4 * len(cases) + 0.6, 5.2, path) as drawn:
        axes = drawn.subplots(2, len(cases), sharex=True, squeeze=False)
        for column, (kind, workers) in enumerate(cases):
            top, bottom = axes[0, column], axes[1, column]
            for each in passes:
                if (each.path, each.num_workers) != (kind, workers):
                    continue
                place = [10 * tenth + 5 for tenth in range(10)]
                style: Any = {"color": _COLOURS[each.loader], "linewidth": 1.1, "alpha": 0.7}
                style["label"] = each.loader if each.round == 0 else None
                top.plot(place, each.rates, **style)
                bottom.plot(place, each.rss_mib, **style)
            top.set_title(f"{kind}, {workers} worker{'' if workers == 1 else 's'}")
            top.set_ylim(bottom=0)
            bottom.set_ylim(bottom=0)
            bottom.set_xlabel("% of a pass, after the warm-up")
        axes[0, 0].set_ylabel("samples/s")
        axes[1, 0].set_ylabel("memory with workers, MiB")
        axes[0, 0].legend(loc="lower right")
