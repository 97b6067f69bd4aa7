"""The scripts of experiments/sharding at tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "sharding"


def test_both_kinds_of_save_are_timed(tmp_path: Path) -> None:
    out = tmp_path / "stall.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    size = ["--depth", "1", "--width", "64", "--rounds", "2", "--steps", "1"]  # the first stands apart
    subprocess.run([*torchrun, str(FOLDER / "stall.py"), "--out", str(out), *size], check=True, timeout=120)
    found = json.loads(out.read_text())
    assert found["ranks"] == 2
    for name in ("full", "background", "published", "step"):
        assert found["seconds"][name]["median"] > 0
    assert found["seconds"]["background"]["median"] < found["seconds"]["published"]["median"]


@pytest.mark.slow
def test_trainers_are_held_against_one_process(tmp_path: Path) -> None:
    out = tmp_path / "equality.json"
    options = ["--work", str(tmp_path), "--out", str(out), "--seeds", "0", "--steps", "2"]
    subprocess.run([sys.executable, str(FOLDER / "equality.py"), *options], check=True, timeout=280)
    record = json.loads(out.read_text())
    assert {"commit", "torch", "device"} <= record["environment"].keys()
    largest = record["largest"]
    assert set(largest) == {"ddp", "fsdp2", "hsdp", "one_in_twos"}
    assert all(found["train/loss"] < 1e-5 for found in largest.values())
