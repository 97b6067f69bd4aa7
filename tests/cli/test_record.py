"""Records from the command line, and the script that makes the adaptation record, with stand-ins for runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sana_train.cli.load import REPOSITORY
from sana_train.cli.record import main
from sana_train.evaluation.convergence.levels import Levels, save_arrays
from sana_train.evaluation.record import HEADLINE_METRICS, Record

GRID = (0, 10, 100, 1000)
NUM_CLIPS = 8
RISING = ("samples/semantic", "samples/colour", "samples/texture")

# Stands for `python train.py`: leaves what a finished run leaves; a higher learning rate is better here.
STAND_IN = """#!/usr/bin/env bash
if [[ $1 != train.py ]]; then exec "{python}" "$@"; fi
for argument in "$@"; do
  name=given_$(tr './' '__' <<<"${{argument%%=*}}")
  declare "$name=${{argument#*=}}" 2>/dev/null
done
run=$given_paths_runs/$given_run_id lr=${{given_training_lr:-0.001}}
template="{template}/$lr"
[[ $given_training_max_steps == 1000 || ! -d $template-full ]] || template=$template-full
mkdir -p "$run" && cp -r "$template/." "$run/"
printf '{{"training.seed": %s, "training.lr": %s}}' "${{given_training_seed:-0}}" "$lr" >"$run/identity.json"
echo "$given_run_id $given_training_max_steps $given_adaptation" >>"{log}"
"""


def write_run(folder: Path, lr: float, seed: int = 0, *, breaks_off: bool = False) -> None:
    """A finished run that closes the gap from 0 to 1 faster at a higher learning rate."""
    lines = []
    for step in GRID:
        closed = (
            0.0
            if breaks_off and step == GRID[-1]
            else min(1.0, np.log1p(step) / np.log1p(1000) * (0.95 if lr < 1e-3 else 1.3))
        )
        values = {name: closed if name in RISING else 1.0 - closed for name in HEADLINE_METRICS}
        save_arrays(
            folder / "clips" / f"step_{step:06d}.npz",
            {name: np.full(NUM_CLIPS, value) for name, value in values.items()},
        )
        lines.append(json.dumps({"step": step, "heldout/loss": 1.0, **values}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "run.json").write_text(
        json.dumps({"completed_steps": GRID[-1], "config": {"paths": "private"}})
    )
    (folder / "identity.json").write_text(json.dumps({"training.seed": seed, "training.lr": lr}))
    (folder / "export").mkdir()
    levels().save(folder / "export" / "levels.npz")


def levels() -> Levels:
    def all_at(value: float, other: float) -> dict[str, np.ndarray]:
        return {
            name: np.full(NUM_CLIPS, value if name in RISING else other, np.float32)
            for name in HEADLINE_METRICS
        }

    return Levels(zero=all_at(0.0, 1.0), reference=all_at(1.0, 0.0))


def test_add_takes_seed_and_rate_from_the_run_itself(tmp_path: Path) -> None:
    write_run(tmp_path / "a", lr=3e-4, seed=7)
    main(["add", str(tmp_path / "record"), str(tmp_path / "a"), "--arm", "scratch"])
    levels().save(tmp_path / "record" / "levels.npz")
    (run,) = Record.load(tmp_path / "record").runs
    assert (run.arm, run.seed, run.lr, run.is_sweep) == ("scratch", 7, 3e-4, False)
    made_by = json.loads((tmp_path / "record" / "made_by" / "a.json").read_text())
    assert made_by == {"identity": {"training.seed": 7, "training.lr": 3e-4}, "completed_steps": 1000}


def test_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    for number in range(6):
        write_run(tmp_path / f"run{number}", lr=1e-3, seed=number)

    def add(number: int) -> None:
        arguments = ["add", str(tmp_path / "record"), str(tmp_path / f"run{number}"), "--arm", "random"]
        subprocess.run(
            [sys.executable, "-m", "sana_train.cli.record", *arguments], check=True, cwd=REPOSITORY
        )

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(6)))
    assert sorted(run.seed for run in Record.load(tmp_path / "record").runs) == list(range(6))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"it has no identity\.json"):
        main(["add", str(tmp_path / "record"), str(tmp_path), "--arm", "random"])
    with pytest.raises(SystemExit, match=r"it has no runs\.jsonl"):
        main(["report", str(tmp_path)])
    assert not (tmp_path / "record").exists()


@pytest.fixture
def run_script(tmp_path: Path):
    """Calls the record's script with stand-ins for training; returns (its process, what was trained)."""
    for lr in ("0.0003", "0.001"):
        write_run(tmp_path / "template" / lr, float(lr))
        (tmp_path / "template" / lr / "identity.json").unlink()
    (tmp_path / "weights" / "sana_ltx2").mkdir(parents=True)
    levels().save(tmp_path / "weights" / "sana_ltx2" / "levels.npz")
    python = tmp_path / "python"
    log = tmp_path / "log"
    python.write_text(STAND_IN.format(python=sys.executable, template=tmp_path / "template", log=log))
    python.chmod(0o755)

    def call(*more: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        settings = {"ARMS": "random", "LRS": "0.0003 0.001", "SEEDS": "0", "PYTHON": str(python)}
        done = subprocess.run(
            [
                *("bash", "experiments/ltx_adapt_tiny/run.sh"),
                *(str(tmp_path / name) for name in ("runs", "weights", "out")),
                *more,
            ],
            cwd=REPOSITORY,
            env={**os.environ, **settings, **environment},
            capture_output=True,
            text=True,
        )
        return done, log.read_text().splitlines() if log.exists() else []

    return call


def test_script_sweeps_chooses_runs_and_reports(run_script, tmp_path: Path) -> None:
    done, trained = run_script("2")
    assert done.returncode == 0, done.stderr
    assert trained[0].split()[:2] == ["prepare", "2"]
    assert len(trained) == 1 + 2 + 1
    assert all(line.split()[1] == "1000" for line in trained[1:3])
    record = Record.load(tmp_path / "out")
    assert record.arms == ["random"]
    assert {run.lr for run in record.runs if not run.is_sweep} == {1e-3}  # the better of the two
    assert {run.seed for run in record.runs if run.is_sweep} == {100}
    assert (tmp_path / "out" / "tables.md").is_file()
    assert (tmp_path / "out" / "figure.png").is_file()
    _, again = run_script("2", LRS="0.001")
    assert again == trained  # what is finished is not run again


def test_script_runs_an_arm_that_breaks_off_again_at_its_next_best_rate(run_script, tmp_path: Path) -> None:
    full = tmp_path / "template" / "0.001-full"
    write_run(full, 1e-3, breaks_off=True)
    (full / "identity.json").unlink()
    done, trained = run_script("2")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in trained[3:]] == ["random-s0", "random-lr0.0003-s0"]
    record = Record.load(tmp_path / "out")
    assert {run.lr for run in record.select("random")} == {3e-4}
    assert "breaks off in full runs" in (tmp_path / "out" / "tables.md").read_text()


def test_script_adds_nothing_to_a_record_of_other_runs(run_script, tmp_path: Path) -> None:
    assert run_script("2")[0].returncode == 0
    before = (tmp_path / "out" / "runs.jsonl").read_text()
    (tmp_path / "runs").rename(tmp_path / "runs of before")
    done, _ = run_script("2", LRS="0.001")
    assert done.returncode == 2
    assert "is no run of" in done.stderr and "give another OUT" in done.stderr
    assert (tmp_path / "out" / "runs.jsonl").read_text() == before


def test_script_names_what_time_did_not_allow(run_script, tmp_path: Path) -> None:
    done, trained = run_script("2", "0")
    assert done.returncode == 1
    assert "not finished: prepare" in done.stderr
    assert trained == []
