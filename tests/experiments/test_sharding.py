"""The script of experiments/sharding at tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "experiments" / "sharding" / "stall.py"


def test_both_kinds_of_save_are_timed(tmp_path: Path) -> None:
    out = tmp_path / "stall.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    size = ["--depth", "1", "--width", "64", "--rounds", "1", "--steps", "1"]
    subprocess.run([*torchrun, str(SCRIPT), "--out", str(out), *size], check=True, timeout=120)
    found = json.loads(out.read_text())
    assert found["ranks"] == 2
    for name in ("full", "background", "published", "step"):
        assert found["seconds"][name]["median"] > 0
    assert found["seconds"]["background"]["median"] < found["seconds"]["published"]["median"]
