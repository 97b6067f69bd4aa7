"""What people read of a record: tables, figure, the README's block."""

from __future__ import annotations

from pathlib import Path

import pytest

from sana_train.evaluation.record import Record, add_run
from sana_train.evaluation.record_report import (
    BLOCK_BEGIN,
    BLOCK_END,
    NO_RECORD,
    readme_block,
    replace_block,
    write_report,
)
from sana_train.evaluation.record_tables import choose_lr, sweep

ROOT = Path(__file__).parents[3]


def test_the_readme_says_what_the_record_says():
    text = (ROOT / "README.md").read_text()
    assert replace_block(text, readme_block(ROOT / "experiments" / "ltx_adapt_tiny_3")) == text


def test_block_of_a_record_holds_table_and_gate(record_dir, tmp_path):
    block = readme_block(record_dir)
    assert "S90-semantic" in block
    assert "scratch / random, S90-semantic" in block
    assert readme_block(tmp_path) == NO_RECORD


def test_only_the_block_is_replaced():
    text = f"a\n{BLOCK_BEGIN}\nold\n{BLOCK_END}\nb\n"
    assert replace_block(text, "new") == f"a\n{BLOCK_BEGIN}\nnew\n{BLOCK_END}\nb\n"


@pytest.mark.parametrize("text", ["", BLOCK_BEGIN, BLOCK_END + BLOCK_BEGIN, (BLOCK_BEGIN + BLOCK_END) * 2])
def test_a_text_without_its_two_markers_is_refused(text):
    with pytest.raises(ValueError, match="expected one"):
        replace_block(text, "new")


def test_report_is_written_beside_the_numbers(record_dir, tmp_path):
    copy = tmp_path / "record"
    copy.mkdir()
    for name in ("runs.jsonl", "levels.npz"):
        (copy / name).write_bytes((record_dir / name).read_bytes())
    tables, figure = write_report(copy)
    assert all(f"## {title}" in tables.read_text() for title in ("S90", "Is this world", "Learning rates"))
    assert figure.stat().st_size > 10_000


def test_sweeps_alone_are_no_result(write_run, tmp_path):
    write_run(tmp_path / "run", (400, 400, 400), 0, [0, 10])
    add_run(tmp_path / "record", tmp_path / "run", arm="random", seed=0, lr=1e-3, is_sweep=True)
    with pytest.raises(ValueError, match="sweeps only"):
        write_report(tmp_path / "record")


def test_full_runs_do_not_change_what_a_sweep_chose(record_dir):
    record = Record.load(record_dir)
    before = sweep(record, "random")
    for run in record.runs:
        if not run.is_sweep:
            run.clips["samples/semantic"] = run.clips["samples/semantic"] + 0.5
    assert sweep(Record(record.runs, record.levels), "random") == before
    assert choose_lr(before).lr == 3e-4
