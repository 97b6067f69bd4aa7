"""The gate passes only where every one of its conditions does, and says which does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sana_train.evaluation.record import Record
from sana_train.evaluation.record_gate import gate, gate_table, has_gate
from sana_train.evaluation.record_report import gate_line


def test_ratios_are_those_built_in_and_are_read_against_their_limits(record_dir):
    record = Record.load(record_dir)
    assert has_gate(record)
    result = gate(record)
    assert result.scratch.value == pytest.approx(3000 / 400, rel=0.05)
    assert result.texture.value == pytest.approx(2400 / 400, rel=0.05)
    assert result.unmet == []
    assert result.passed
    assert "meets its gate" in gate_line(record)


def test_an_arm_that_never_arrives_counts_as_the_last_step_and_as_a_lower_bound(record_dir):
    record = Record.load(record_dir)
    for run in record.runs:
        run.arm = {"random": "scratch", "scratch": "random"}.get(run.arm, run.arm)
    result = gate(record)  # `random` now never reaches texture and is slower than `scratch`
    assert str(result.texture).startswith(">= 3.")
    assert result.texture.value == pytest.approx(10000 / 3000, rel=0.05)
    assert "random reaches S90-texture" in result.unmet
    assert not result.scratch.passed
    assert not result.passed


def keep_seeds(record: Record, kept: Callable[[str, int], bool]) -> None:
    record.runs = [run for run in record.runs if run.is_sweep or kept(run.arm, run.seed)]


def cut(record: Record, arm: str, num_steps: int) -> None:
    for run in record.select(arm):
        run.steps, run.metrics = run.steps[:num_steps], run.metrics[:num_steps]
        run.clips = {name: values[:num_steps] for name, values in run.clips.items()}


def two_seeds(record: Record) -> None:
    keep_seeds(record, lambda arm, seed: seed < 2)


def other_seeds(record: Record) -> None:
    for run in record.select("scratch"):
        run.seed += 1


def one_seed_less(record: Record) -> None:
    keep_seeds(record, lambda arm, seed: arm != "scratch" or seed < 2)


def one_seed_twice(record: Record) -> None:
    for run in record.select("random") + record.select("scratch"):
        run.seed = max(run.seed, 1)


def stopped_early(record: Record) -> None:
    cut(record, "random", 15)
    cut(record, "scratch", 15)  # 7,500 steps


def scratch_stopped_early(record: Record) -> None:
    cut(record, "scratch", 8)  # 500 steps, where it is not there yet


def rate_at_the_edge(record: Record) -> None:
    record.runs = [run for run in record.runs if not (run.is_sweep and run.lr == 1e-4)]


def scratch_falls_back(record: Record) -> None:
    run = record.select("scratch")[1]
    run.clips["samples/semantic"][10] = run.clips["samples/semantic"][0]


@pytest.mark.parametrize(
    ("spoil", "unmet"),
    [
        (two_seeds, "same seeds of both"),
        (other_seeds, "same seeds of both"),
        (one_seed_less, "same seeds of both"),
        (one_seed_twice, "same seeds of both"),
        (stopped_early, "last step of both"),
        (scratch_stopped_early, "last step of both"),
        (rate_at_the_edge, "learning rate inside its sweep"),
        (scratch_falls_back, "scratch keeps what it learnt"),
    ],
)
def test_what_the_ratios_rest_on_is_checked_and_named(record_dir, spoil, unmet):
    record = Record.load(record_dir)
    spoil(record)
    assert unmet in gate(record).unmet
    assert not gate(record).passed
    line = gate_line(record)
    assert "does **not** meet its gate" in line
    assert unmet in line
    (row,) = [row for row in gate_table(record).splitlines() if row.startswith(f"| {unmet} ")]
    assert row.split("|")[-2].strip() == "no"


def test_an_arm_stopped_early_is_not_counted_to_the_last_step_of_the_other(record_dir):
    record = Record.load(record_dir)
    cut(record, "scratch", 8)
    assert gate(record).scratch.value == pytest.approx(500 / 400, rel=0.05)


@pytest.mark.parametrize("headline", ["semantic", "texture"])
def test_a_headline_without_a_gap_is_no_lower_bound(record_dir, headline):
    """With nothing to recover, `not reached` would otherwise count as 10,000 steps and pass."""
    record = Record.load(record_dir)
    name = f"samples/{headline}"
    record.levels.reference[name] = np.zeros_like(record.levels.reference[name])
    result = gate(record)
    assert "no gap" in gate_table(record)
    assert str(result.texture) == "no gap"
    assert not result.texture.passed
    assert "random, texture / semantic" in result.unmet


def test_table_is_markdown_of_at_most_100_columns(record_dir):
    record = Record.load(record_dir)
    for _ in range(2):
        lines = gate_table(record).splitlines()
        assert len({len(line) for line in lines}) == 1
        assert len(lines[0]) <= 100
        other_seeds(record)  # the longer text
    assert "| 7." in gate_table(record)
