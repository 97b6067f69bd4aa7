"""A sweep for people and for programs: ``table.md`` of at most 100 columns, ``table.csv``, ``table.json``."""

from __future__ import annotations

import csv
import io
import json
import math
import string
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sana_train.evaluation.convergence.s90 import HEADLINES, SAMPLE_HEADLINES
from sana_train.evaluation.record_tables import markdown_table
from sana_train.evaluation.sweep import Arm, Sweep, SweepRun
from sana_train.utils.files import publish_directory, write_json

COLUMNS = 100
FILES = ("table.md", "table.csv", "table.json", "figure.png")
_MEASURES = {"train/loss": "train loss", "heldout/loss": "held-out loss", "speed/tokens_per_s": "tokens/s"}
Rows = list[list[str]]


def write_report(out: Path, sweep: Sweep) -> None:
    """All of ``FILES``, or none.

    Raises:
        ValueError: ``out`` holds other files, which publishing would replace.
    """
    from sana_train.evaluation.sweep_figure import sweep_figure  # imports matplotlib

    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - set(FILES)):
        raise ValueError(f"{out} is there and holds other things than a table; name a folder for it alone")
    with publish_directory(out) as scratch:
        (scratch / "table.md").write_text(report(sweep))
        (scratch / "table.csv").write_text(as_csv(sweep))
        write_json(scratch / "table.json", as_plain(sweep))
        sweep_figure(scratch / "figure.png", sweep)


def report(sweep: Sweep) -> str:
    """The whole of ``table.md``: arms, each run, medians and ranges over the seeds, notes."""
    columns = [label(key, sweep.keys) for key in sweep.keys]
    cells = {id(arm): [text(value) for value in arm.values] for arm in sweep.arms}
    legend = ""
    if any(_width(table(sweep, columns, cells)) > COLUMNS for table in (_runs, _arms, _recovery)):
        legend = _legend(sweep, columns, cells)
        columns = ["arm"]
        cells = {id(arm): [letter(position)] for position, arm in enumerate(sweep.arms)}
    parts = [f"# {len(sweep.runs)} runs of {len(sweep.arms)} arms", *([legend] if legend else [])]
    parts.append(_section("Runs", _runs(sweep, columns, cells)))
    title = "Arms: median [least, most] of the finished runs, or of all while none is"
    parts.append(_section(title, _arms(sweep, columns, cells)))
    if any(name.startswith("recovery/") for name in sweep.measures):
        parts.append(_section("Recovery: median [least, most]", _recovery(sweep, columns, cells)))
    notes = [f"- {run.name}: {' '.join(run.note.split())}" for run in sweep.runs if run.note]
    if notes:
        parts.append("\n".join(textwrap.fill(note, COLUMNS, subsequent_indent="  ") for note in notes))
    return "\n\n".join(parts) + "\n"


def as_csv(sweep: Sweep) -> str:
    """One line a run: every key in which arms differ, every measure, by their full names."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", *sweep.keys, "seed", "status", "step", *sweep.measures, "note"])
    for arm in sweep.arms:
        for run in arm.runs:
            measures = run.measures
            values = [measures.get(name, "") for name in sweep.measures]
            keys = [text(value) for value in arm.values]
            writer.writerow([run.name, *keys, run.seed, run.status, run.step, *values, run.note])
    return file.getvalue()


def as_plain(sweep: Sweep) -> dict[str, Any]:
    """Arms with medians, and their runs; infinity (S90 not reached) is null, as JSON has none."""
    return {"arms": [_plain_arm(sweep, arm) for arm in sweep.arms]}


def _plain_arm(sweep: Sweep, arm: Arm) -> dict[str, Any]:
    spreads = {name: spread for name in sweep.measures if (spread := arm.spread(name)) is not None}
    return {
        "config": dict(zip(sweep.keys, arm.values, strict=True)),
        "median_least_most": {name: [_finite(value) for value in each] for name, each in spreads.items()},
        "runs": [
            {
                "run": run.name,
                "seed": run.seed,
                "status": run.status,
                "step": run.step,
                "note": run.note,
                **{name: _finite(value) for name, value in run.measures.items()},
            }
            for run in arm.runs
        ],
    }


def letter(position: int) -> str:
    """A, B, ..., Z, AA, AB ..."""
    more, last = divmod(position, len(string.ascii_uppercase))
    return (letter(more - 1) if more else "") + string.ascii_uppercase[last]


def text(value: Any) -> str:
    """A value of a configuration, short."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _runs(sweep: Sweep, columns: Sequence[str], cells: dict[int, list[str]]) -> Rows:
    rows = [[*columns, "seed", "status", *_MEASURES.values()]]
    for arm in sweep.arms:
        rows += [[*cells[id(arm)], str(run.seed), run.state, *_measured(run)] for run in arm.runs]
    return rows


def _measured(run: SweepRun) -> list[str]:
    measures = run.measures
    return [_number(name)(measures[name]) if name in measures else "-" for name in _MEASURES]


def _arms(sweep: Sweep, columns: Sequence[str], cells: dict[int, list[str]]) -> Rows:
    rows = [[*columns, "finished", *_MEASURES.values()]]
    for arm in sweep.arms:
        spreads = [_spread(arm, name, _number(name)) for name in _MEASURES]
        rows.append([*cells[id(arm)], f"{len(arm.finished)} of {len(arm.runs)}", *spreads])
    return rows


def _recovery(sweep: Sweep, columns: Sequence[str], cells: dict[int, list[str]]) -> Rows:
    """A line for each arm and headline: those of samples where any run has them, else loss bands."""
    found = [headline for headline in HEADLINES if f"recovery/{headline}" in sweep.measures]
    shown = [headline for headline in found if headline in SAMPLE_HEADLINES] or found
    rows = [["recovery of", *columns, "gap closed at the end", "steps to 90 %"]]
    for name in shown:
        for arm in sweep.arms:
            closed = _spread(arm, f"recovery/{name}", "{:.0%}".format)
            rows.append([name, *cells[id(arm)], closed, _spread(arm, f"s90/{name}", _steps)])
    return rows


def _number(measure: str) -> Callable[[float], str]:
    return "{:,.0f}".format if measure.startswith("speed/") else "{:.4g}".format


def _steps(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:,.0f}"


def _spread(arm: Arm, measure: str, show: Callable[[float], str]) -> str:
    spread = arm.spread(measure)
    if spread is None:
        return "-"
    median, least, most = map(show, spread)
    return median if least == most else f"{median} [{least}, {most}]"


def label(key: str, keys: Sequence[str]) -> str:
    """The end of a dotted key that no other of them has."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        end = "." + ".".join(parts[-count:])
        if sum(f".{other}".endswith(end) for other in keys) == 1:
            return end[1:]
    return key


def _legend(sweep: Sweep, columns: Sequence[str], cells: dict[int, list[str]]) -> str:
    lines = []
    for position, arm in enumerate(sweep.arms):
        pairs = "; ".join(f"{name} {cell}" for name, cell in zip(columns, cells[id(arm)], strict=True))
        lines.append(textwrap.fill(f"- {letter(position)}: {pairs}", COLUMNS, subsequent_indent="  "))
    return "\n".join(lines)


def _width(rows: Rows) -> int:
    return len(markdown_table(rows).splitlines()[0])


def _section(title: str, rows: Rows) -> str:
    return f"## {title}\n\n{markdown_table(rows)}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
