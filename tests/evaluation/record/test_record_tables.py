from __future__ import annotations

import math

import pytest

from sana_train.evaluation.record import Record
from sana_train.evaluation.record_tables import (
    SweepPoint,
    choose_lr,
    gate,
    gate_table,
    s90_table,
    sweep,
    sweep_table,
)


def test_gate_ratios_are_those_built_in_and_are_read_against_their_limits(record_dir):
    result = gate(Record.load(record_dir))
    assert result.scratch.value == pytest.approx(3000 / 400, rel=0.05)
    assert result.texture.value == pytest.approx(2400 / 400, rel=0.05)
    assert result.passed


def test_an_arm_that_never_arrives_counts_as_the_last_step_and_as_a_lower_bound(record_dir):
    record = Record.load(record_dir)
    for run in record.runs:
        run.arm = {"random": "scratch", "scratch": "random"}.get(run.arm, run.arm)
    result = gate(record)  # `random` now never reaches texture and is slower than `scratch`
    assert str(result.texture).startswith(">= 3.")
    assert result.texture.value == pytest.approx(10000 / 3000, rel=0.05)
    assert not result.random_texture
    assert not result.scratch.passed
    assert not result.passed


def test_the_sweep_takes_the_rate_that_gets_there_first(record_dir):
    points = sweep(Record.load(record_dir), "random")
    assert [point.lr for point in points] == [1e-4, 3e-4, 1e-3]
    assert math.isinf(points[2].s90)
    assert choose_lr(points).lr == 3e-4


def test_where_no_rate_gets_there_the_furthest_is_taken():
    ends = {1e-4: 0.3, 3e-4: 0.6, 1e-3: 0.5}
    points = [SweepPoint("scratch", lr, 1, math.inf, end) for lr, end in ends.items()]
    assert choose_lr(points).lr == 3e-4
    with pytest.raises(ValueError, match="no sweep"):
        choose_lr([])


def test_tables_are_markdown_of_at_most_100_columns(record_dir):
    record = Record.load(record_dir)
    for table in (s90_table(record), gate_table(record), sweep_table(record)):
        lines = table.splitlines()
        assert len({len(line) for line in lines}) == 1
        assert len(lines[0]) <= 100
        assert set(lines[1]) == {"|", "-"}
    assert "not reached" in s90_table(record)
    assert "| 7." in gate_table(record)
    assert next(line for line in sweep_table(record).splitlines() if "<-" in line).split()[3] == "0.0003"
