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
        [sys.executable, str(SCRIPT), *options, "inputs", "fsdp2", "resume"], check=True, timeout=280
    )
    sharded, resumed = (json.loads((out / f"{name}.json").read_text()) for name in ("fsdp2", "resume"))
    assert (sharded["ranks"], resumed["ranks"]) == (2, 1)
    assert len(sharded["save_stalls_s"]) == 1
    assert {"5", "6"} <= resumed["losses"].keys()
    assert resumed["largest_relative_difference"] < 1e-5
