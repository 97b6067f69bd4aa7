"""The script that measures kernels, on a CPU at tiny size."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "speed" / "kernels.py"


@pytest.fixture
def kernels() -> Any:
    spec = importlib.util.spec_from_file_location("speed_kernels", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_are_written_as_they_come(
    kernels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    sections = ["--only", "errors", "train", "--ways", "reference", "fused", "--inputs", "1"]
    kernels.main([str(tmp_path), "--size", "tiny", "--minutes", "2", *sections])
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert record["errors"][0]["fused"]["output"] == record["errors"][0]["reference"]["output"]  # on a CPU
    assert [row["recompute"] for row in record["train"]] == ["none", "full", "selective"] * 2
    assert all(row["step_ms"] > 0 for row in record["train"])


def test_what_fails_and_what_is_late_are_rows(kernels: Any, tmp_path: Path) -> None:
    bench = kernels.Bench(tmp_path, 60)
    bench.run("part", {"name": "broken"}, lambda: {}["missing"])
    bench.end = 0.0
    bench.run("part", {"name": "late"}, dict)
    rows = json.loads((tmp_path / "kernels.json").read_text())["part"]
    assert rows[0]["failed"].startswith("KeyError")
    assert rows[1] == {"name": "late", "skipped": "time limit"}
