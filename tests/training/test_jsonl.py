"""metrics.jsonl stays readable and free of work that was lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sana_train.training.jsonl import JsonlLogger, read_jsonl


def write(run_dir: Path, steps: list[int], tail: str = "") -> Path:
    run_dir.mkdir(exist_ok=True)
    path = run_dir / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "train/loss": step / 7}) + "\n" for step in steps) + tail
    )
    return path


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_jsonl(path)]


def test_lines_past_the_resume_step_are_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, [0, 2, 4, 4, 6])
    JsonlLogger(tmp_path, 4)
    assert steps(path) == [0, 2, 4, 4]
    assert read_jsonl(path)[1] == {"step": 2, "train/loss": 2 / 7}


def test_a_line_cut_by_a_kill_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path, [0, 2], tail='{"step": 3, "train/lo')
    assert steps(path) == [0, 2]
    JsonlLogger(tmp_path, 2).log_metrics({"train/loss": 0.5}, step=3)
    assert read_jsonl(path)[-1] == {"step": 3, "train/loss": 0.5}
    assert steps(path) == [0, 2, 3]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, [0, 2], tail='{"step": 3, "tr\x00\n{"step": 4}\n')
    with pytest.raises(ValueError, match=r"line 3 of .*metrics\.jsonl is damaged .* take it out or"):
        JsonlLogger(tmp_path, 2)
    assert len(path.read_text().splitlines()) == 4


def test_a_run_that_never_saved_starts_its_record_anew(tmp_path: Path) -> None:
    path = write(tmp_path, [0, 1])
    logger = JsonlLogger(tmp_path, 0)
    assert steps(path) == []
    logger.log_metrics({"heldout/loss_high": 1.0}, step=0)
    assert steps(path) == [0]


def test_lines_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "new run", 0)
    assert not (tmp_path / "new run").exists()
    logger.log_metrics({"a": 1.0}, step=1)
    assert read_jsonl(tmp_path / "new run" / "metrics.jsonl") == [{"step": 1, "a": 1.0}]
