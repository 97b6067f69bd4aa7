"""Kernels compile for an H100, fit into its shared memory and keep their numbers in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels need Triton: pip install triton")
MOST_SPILLED = 224  # bytes of a thread: some numbers that are read once a tile


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [["2240", "20"], ["192", "6"]])
def test_kernels_compile_for_an_h100(sizes: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), *sizes]
    output = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert output.returncode == 0, output.stderr[-3000:]
    rows = [json.loads(line) for line in output.stdout.splitlines()]
    assert len({row["kernel"] for row in rows}) == 17
    for row in rows:
        assert row["programs_at_once"] >= 1, row
        assert row["spilled"] <= MOST_SPILLED, row
