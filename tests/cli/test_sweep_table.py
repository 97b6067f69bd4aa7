"""The table of a sweep, from run directories as runs leave them, and what runs leave of an error."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sana_train.cli import sweep_table
from sana_train.cli.failure import failure_recorded
from sana_train.cli.load import compose_config
from sana_train.cli.process import one_of_a_sweep
from sana_train.cli.run_id import identity, run_id
from sana_train.utils.files import write_json

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run directory whose last evaluation has the given loss and recoveries."""

    def make(*overrides: str, loss: float = 1.0, steps: int = 500, done: bool = True, **recovery: float):
        cfg = compose_config(["logger=csv", *overrides])
        folder = tmp_path / "runs" / run_id(cfg)
        write_json(folder / "identity.json", identity(cfg))
        first = {"step": 0, "heldout/loss": 3.0, **{f"recovery/{name}": 0.0 for name in recovery}}
        last = {f"recovery/{name}": value for name, value in recovery.items()}
        lines = [
            first,
            {"step": steps, "train/loss": loss + 0.5},
            {"step": steps, "speed/tokens_per_s": 1000.0 * loss},
            {"step": steps, "heldout/loss": loss, **last},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if done:
            write_json(folder / "export" / "record.json", {"steps": steps})
        return folder

    return make


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "table.csv").read_text().splitlines()))


def test_arms_seeds_and_medians(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, loss, semantic in ((0, 1.0, 0.95), (1, 1.2, 0.85), (2, 1.1, 0.97)):
        make_run("adaptation=random", f"training.seed={seed}", loss=loss, semantic=semantic, loss_high=0.5)
    make_run("adaptation=scratch", loss=2.0, steps=120, semantic=0.1, loss_high=0.0, done=False)
    sweep_table.main([str(tmp_path / "runs"), str(tmp_path / "out")])
    shown = capsys.readouterr().out
    table = (tmp_path / "out" / "table.md").read_text()
    assert shown == f"{table}\nwritten to {tmp_path / 'out'}\n"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    assert ["random", "1", "finished at 500", "1.7", "1.2", "1,200"] in cells
    assert ["scratch", "0", "at step 120", "2.5", "2", "2,000"] in cells
    assert ["random", "3 of 3", "1.6 [1.5, 1.7]", "1.1 [1, 1.2]", "1,100 [1,000, 1,200]"] in cells
    assert ["scratch", "0 of 1", "2.5", "2", "2,000"] in cells
    # Samples are judged, so the loss bands behind them are left out.
    assert [row[:3] for row in cells if row[0] == "semantic"] == [
        ["semantic", "random", "95% [85%, 97%]"],
        ["semantic", "scratch", "10%"],
    ]
    assert not [row for row in cells if row[0] == "loss_high"]
    assert "last heard of" in table

    plain = json.loads((tmp_path / "out" / "table.json").read_text())
    random, scratch = plain["arms"]
    assert random["config"] == {"adaptation": "random"}
    assert random["median_least_most"]["heldout/loss"] == [1.1, 1.0, 1.2]
    assert [run["seed"] for run in random["runs"]] == [0, 1, 2]
    # On a line in log(1 + step) from 0 at step 0 to 0.95 at step 500.
    assert random["runs"][0]["s90/semantic"] == pytest.approx(math.expm1(0.9 / 0.95 * math.log1p(500)))
    assert random["runs"][1]["s90/semantic"] is None
    assert scratch["runs"][0]["status"] == "going"
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["finished"] * 3 + ["going"]


def test_differences_that_are_no_option_are_columns_by_key(make_run: MakeRun, tmp_path: Path) -> None:
    for lr in ("0.1", "0.02"):
        make_run(f"training.lr={lr}", "adaptation.kept_lr_scale=0.3")
    make_run("training.lr=0.02")
    sweep_table.main([str(tmp_path / "runs"), str(tmp_path / "out")])
    rows = rows_of(tmp_path / "out")
    keys = ("adaptation.kept_lr_scale", "training.lr")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("0.1", "0.02"),
        ("0.3", "0.02"),
        ("0.3", "0.1"),
    ]
    assert "| kept_lr_scale | lr   | seed |" in (tmp_path / "out" / "table.md").read_text()


def test_what_does_not_fit_is_told_above_the_table(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(2):
        make_run(f"training.seed={seed}", loss=1.23456 + seed, semantic=0.5)
    make_run("training.betas=[0.95,0.99999]", "training.weight_decay=0.123456", "training.lr=0.0123456")
    make_run("convergence.noise_levels=[0.11,0.22,0.33,0.44,0.55,0.66,0.77,0.88]")
    sweep_table.main([str(tmp_path / "runs"), str(tmp_path / "out")])
    table = (tmp_path / "out" / "table.md").read_text()
    assert max(map(len, table.splitlines())) <= 100
    assert table.count("\n- ") == 3
    assert "lr 0.0123456; weight_decay 0.123456" in " ".join(table.split())
    assert "| A   | 0    | finished at 500 |" in table


def test_an_error_leaves_its_reason_until_the_run_goes_on(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(done=False)
    with pytest.raises(ValueError, match="too large"), failure_recorded(folder):
        raise ValueError("too large")
    sweep_table.main([str(folder), str(tmp_path / "out")])
    [row] = rows_of(tmp_path / "out")
    assert (row["status"], row["note"]) == ("failed", "ValueError: too large")
    assert "failed at 500" in (tmp_path / "out" / "table.md").read_text()
    with failure_recorded(folder):
        sweep_table.main([str(folder), str(tmp_path / "out")])
    assert rows_of(tmp_path / "out")[0]["status"] == "going"
    unclaimed = tmp_path / "unclaimed"
    with pytest.raises(ValueError, match="never"), failure_recorded(unclaimed):
        raise ValueError("never began")
    assert not unclaimed.exists()


def test_a_run_that_goes_on_past_its_export_is_not_finished(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 510, "train/loss": 1.0}\n')
    sweep_table.main([str(folder), str(tmp_path / "out")])
    [row] = rows_of(tmp_path / "out")
    assert (row["status"], row["step"]) == ("going", "510")


def test_bad_input_is_one_message(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="empty is no run and holds none"):
        sweep_table.main([str(tmp_path / "empty"), str(tmp_path / "out")])
    folder = make_run()
    with pytest.raises(SystemExit, match="holds other things than a table"):
        sweep_table.main([str(folder), str(folder)])
    assert (folder / "metrics.jsonl").is_file()


def test_one_job_of_a_sweep_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    def leave(code: Any) -> None:
        with one_of_a_sweep():
            raise SystemExit(code)

    with pytest.raises(SystemExit, match="too large"):
        leave("too large")
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: type("Config", (), {"mode": RunMode.MULTIRUN}))
    with pytest.raises(RuntimeError, match="too large"):
        leave("too large\nmore")
    with pytest.raises(SystemExit):  # preemption and Ctrl-C are for all
        leave(75)
