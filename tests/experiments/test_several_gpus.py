"""experiments/several_gpus at tiny size, on CPU ranks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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


def test_whoever_ends_it_ends_the_workers_of_what_it_called(tmp_path: Path) -> None:
    """A launcher's child, as torchrun's are, is gone with it."""
    pid_file = tmp_path / "pid"
    worker = f"sleep 300 & echo $! > {pid_file}; wait"
    code = (
        "import runpy, signal, sys; from pathlib import Path\n"
        f"run = runpy.run_path({str(SCRIPT)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"study = run['Study']('tiny', Path({str(tmp_path)!r}), Path({str(tmp_path)!r}), 2, 6, [], 60.0)\n"
        f"study.call('worker', ['bash', '-c', {worker!r}])\n"
    )
    (tmp_path / "logs").mkdir()
    caller = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: pid_file.is_file() and pid_file.read_text().strip() != "")
    caller.send_signal(signal.SIGTERM)
    assert caller.wait(timeout=30) == 143
    worker_pid = int(pid_file.read_text())
    wait_for(lambda: not is_running(worker_pid))


def is_running(pid: int) -> bool:
    """A process without a parent that waits for it stays as a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)
