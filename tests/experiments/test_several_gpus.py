"""experiments/several_gpus at tiny size, on CPU ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "several_gpus" / "run.py"


@pytest.mark.slow
def test_a_killed_run_of_two_ranks_goes_on_with_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [str(out), str(tmp_path / "work"), "--size", "tiny", "--steps", "6"]
    subprocess.run(
        [sys.executable, str(SCRIPT), *options, "inputs", "one", "fsdp2", "resume"], check=True, timeout=400
    )
    sharded, resumed = (json.loads((out / f"{name}.json").read_text()) for name in ("fsdp2", "resume"))
    assert (sharded["ranks"], resumed["ranks"]) == (2, 1)
    assert len(sharded["save_stalls_s"]) == 1
    assert {"5", "6"} <= resumed["losses"].keys()
    assert resumed["largest_relative_difference"] < 1e-5
    rows = [
        [cell.strip() for cell in line.split("|")] for line in (out / "table.md").read_text().splitlines()
    ]
    by_run = {row[1]: row for row in rows if len(row) > 9}
    assert by_run["one"][5] == "100.0%" and by_run["fsdp2"][2] == "2" and by_run["fsdp2"][9] != "-"


@pytest.mark.slow
def test_both_stages_are_judged_alike_by_one_process_and_by_two(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), str(out), str(tmp_path / "work"), "--size", "tiny", "evaluation"]
    subprocess.run(command, check=True, timeout=580)
    found = json.loads((out / "evaluation.json").read_text())
    assert found["seconds"].keys() == {"1", "2"}
    assert found["largest_difference"] < 1e-6
    assert "Both stages on 4 clips" in (out / "table.md").read_text()
