"""A record for people: ``tables.md`` and ``figure.png`` beside its numbers, and the README's block."""

from __future__ import annotations

from pathlib import Path

from sana_train.evaluation.record import Record
from sana_train.evaluation.record_gate import gate, gate_table, has_gate
from sana_train.evaluation.record_tables import s90_table, sweep_table
from sana_train.utils.files import publish_file

TABLES_FILE, FIGURE_FILE = "tables.md", "figure.png"
BLOCK_BEGIN, BLOCK_END = "<!-- record:begin -->", "<!-- record:end -->"
NO_RECORD = (
    "*The record is being made: no S90 has been measured yet, and none is claimed. "
    "`bash experiments/ltx_adapt_tiny/run.sh` makes it on one GPU.*"
)


def write_report(folder: Path) -> list[Path]:
    """Tables and figure of the record in ``folder``, drawn from its numbers alone.

    Raises:
        ValueError: there is no record, or it holds sweeps only.
    """
    from sana_train.evaluation.record_figure import record_figure  # imports torch and matplotlib

    record = load_with_runs(folder)
    parts = ["# Tables", _section("S90: median of the seeds [95 % interval]", s90_table(record))]
    if has_gate(record):
        parts.append(_section("Is this world hard enough?", f"{gate_line(record)}\n\n{gate_table(record)}"))
    if any(run.is_sweep for run in record.runs):
        parts.append(_section("Learning rates", sweep_table(record)))
    with publish_file(folder / TABLES_FILE) as scratch:
        scratch.write_text("\n\n".join(parts) + "\n")
    record_figure(folder / FIGURE_FILE, record)
    return [folder / TABLES_FILE, folder / FIGURE_FILE]


def load_with_runs(folder: Path) -> Record:
    """The record in ``folder``, which must hold at least one full run."""
    record = Record.load(folder)
    if not record.arms:
        raise ValueError(f"{folder} holds sweeps only; add full runs before reporting")
    return record


def readme_block(folder: Path) -> str:
    """What the README says of a record: the S90 table and the gate, or that there is none yet."""
    if not (folder / "runs.jsonl").is_file():
        return NO_RECORD
    record = load_with_runs(folder)
    parts = [s90_table(record)]
    if has_gate(record):
        parts += [gate_line(record), gate_table(record)]
    return "\n\n".join(parts)


def gate_line(record: Record) -> str:
    """Whether the world passed, and by name what it did not."""
    unmet = gate(record).unmet
    if not unmet:
        return "The tiny world meets its gate, without which a transfer result says little:"
    return (
        "The tiny world does **not** meet its gate, without which a transfer result says little; unmet: "
        f"{'; '.join(unmet)}."
    )


def replace_block(text: str, block: str) -> str:
    """``text`` with what stands between the two markers replaced.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    head, begin, rest = text.partition(BLOCK_BEGIN)
    old, end, tail = rest.partition(BLOCK_END)
    if not begin or not end or BLOCK_BEGIN in old + tail or BLOCK_END in tail:
        raise ValueError(f"expected one {BLOCK_BEGIN} and, after it, one {BLOCK_END}")
    return f"{head}{BLOCK_BEGIN}\n{block}\n{BLOCK_END}{tail}"


def _section(title: str, table: str) -> str:
    return f"## {title}\n\n{table}"
