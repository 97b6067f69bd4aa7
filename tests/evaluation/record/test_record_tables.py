from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sana_train.evaluation.record import Record, Run
from sana_train.evaluation.record_gate import gate
from sana_train.evaluation.record_tables import (
    SweepPoint,
    choose_lr,
    is_tuned,
    judged,
    s90_table,
    sweep,
    sweep_table,
)


def test_the_sweep_takes_the_rate_that_gets_there_first(record_dir):
    points = sweep(Record.load(record_dir), "random")
    assert [point.lr for point in points] == [1e-4, 3e-4, 1e-3]
    assert math.isinf(points[2].s90)
    assert choose_lr(points).lr == 3e-4


def test_where_no_rate_gets_there_the_furthest_is_taken():
    ends = {1e-4: 0.3, 3e-4: 0.6, 1e-3: 0.5}
    points = [SweepPoint("scratch", lr, 1, math.inf, end, lr != 3e-4) for lr, end in ends.items()]
    assert choose_lr(points).lr == 3e-4
    with pytest.raises(ValueError, match="no sweep"):
        choose_lr([])


def test_a_best_rate_at_the_edge_of_its_sweep_is_marked_and_not_tuned(record_dir):
    record = Record.load(record_dir)
    assert is_tuned(record, "random")
    assert not choose_lr(sweep(record, "random")).is_edge
    assert not is_tuned(record, "linear_probe")  # it has no sweep
    record.runs = [run for run in record.runs if not (run.is_sweep and run.lr == 1e-4)]
    assert choose_lr(sweep(record, "random")).is_edge
    assert not is_tuned(record, "random")
    assert "<- edge, not tuned" in sweep_table(record)


def test_full_runs_at_another_rate_than_the_sweeps_best_are_not_tuned(record_dir):
    record = Record.load(record_dir)
    record.select("random")[0].lr = 2e-4
    assert not is_tuned(record, "random")


def break_off(record: Record, arm: str, seed: int) -> Run:
    """A full run that loses everything between 1,000 and 5,000 steps."""
    (run,) = [run for run in record.runs if run.arm == arm and run.seed == seed and not run.is_sweep]
    run.clips["samples/semantic"] = run.clips["samples/semantic"].copy()
    run.clips["samples/semantic"][-3:] = run.clips["samples/semantic"][0]
    return run


def test_a_rate_at_which_a_full_run_breaks_off_gives_way_to_the_next_best(record_dir):
    record = Record.load(record_dir)
    broken = break_off(record, "random", 1)
    assert record.broken_rates("random") == {3e-4}
    assert choose_lr(sweep(record, "random"), record.broken_rates("random")).lr == 1e-4
    assert [run.seed for run in record.select("random")] == [0, 1, 2]  # until there are others
    assert not is_tuned(record, "random")
    (line,) = [line for line in sweep_table(record).splitlines() if "breaks off" in line]
    assert line.split()[3] == "0.0003"

    again = [replace(run, name=f"{run.name}-again", lr=1e-4) for run in record.runs if run is not broken]
    record.runs += [run for run in again if run.arm == "random" and not run.is_sweep]
    assert {run.lr for run in record.select("random")} == {1e-4}
    assert "| random       | 0.0001 |" in s90_table(record)


def at_another_rate(record: Record, arm: str, lr: float) -> None:
    """Full runs of the arm once more, at a rate that its sweep did not choose; textures never come back."""
    runs = record.select(arm)
    again = [replace(run, name=f"{run.name}-lr{lr:g}", lr=lr, clips=dict(run.clips)) for run in runs]
    for run in again:
        start = run.clips["samples/texture"][:1]
        run.clips["samples/texture"] = np.repeat(start, len(run.steps), axis=0)
    record.runs += again


def test_full_runs_at_several_rates_are_judged_at_the_sweeps_and_shown_beside(record_dir):
    record = Record.load(record_dir)
    before, passed = s90_table(record).splitlines(), gate(record)
    at_another_rate(record, "random", 1e-4)
    assert len(record.select("random")) == 6
    assert {run.lr for run in judged(record).select("random")} == {3e-4}
    assert gate(record) == passed
    after = s90_table(record).splitlines()
    assert [line.split() for line in before[2:]] == [
        line.split() for line in after[2:] if "other lr" not in line
    ]
    (other,) = [line for line in after if "other lr" in line]
    assert other.split("|")[2].strip() == "0.0001"
    assert "not reached" in other.split("|")[-2]


def test_full_runs_at_other_rates_only_are_all_that_is_judged(record_dir):
    record = Record.load(record_dir)
    at_another_rate(record, "random", 1e-4)
    others = record.without("random", {3e-4})
    assert {run.lr for run in judged(others).select("random")} == {1e-4}
    assert "learning rate inside its sweep" in gate(others).unmet


def test_no_rate_is_left_where_full_runs_break_off_at_all(record_dir):
    points = sweep(Record.load(record_dir), "random")
    with pytest.raises(ValueError, match="broke off at every rate"):
        choose_lr(points, {1e-4, 3e-4, 1e-3})


def test_a_sweep_without_a_gap_chooses_nothing(record_dir):
    record = Record.load(record_dir)
    record.levels.reference["samples/semantic"] = record.levels.reference["samples/semantic"] * 0
    with pytest.raises(ValueError, match=r"no gap to close(.|\n)*measure it again"):
        choose_lr(sweep(record, "random"))
    assert not is_tuned(record, "random")
    assert sweep_table(record).count("no gap") == 6
    assert s90_table(record).count("no gap") == 3  # semantic, of every arm


def test_tables_are_markdown_of_at_most_100_columns(record_dir):
    record = Record.load(record_dir)
    for table in (s90_table(record), sweep_table(record)):
        lines = table.splitlines()
        assert len({len(line) for line in lines}) == 1
        assert len(lines[0]) <= 100
        assert set(lines[1]) == {"|", "-"}
    assert "not reached" in s90_table(record)
    assert next(line for line in sweep_table(record).splitlines() if "<-" in line).split()[3] == "0.0003"
