"""What a machine cannot run is skipped, and fails where it was to run (tests/needs.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import REQUIRE

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

def test_of_something_else(): pass

@pytest.mark.slurm
def test_that_runs(): pass

@pytest.mark.slurm
def test_that_does_not():
    {act}
"""
SKIP = "pytest.skip('does not start')"


def run(folder: Path, act: str, *more: str, path: str | None = None, **variables: str) -> tuple[int, str]:
    """Exit code and last words of pytest with the plugin alone, where SLURM counts as installed."""
    (folder / "test_it.py").write_text(TESTS.format(act=act))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    slurm\n    browser\n")
    (folder / "installed.py").write_text(
        "from tests import needs\nneeds.missing_daemons = lambda: []\nneeds._missing = dict\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "installed",
        "-p",
        "tests.needs",
        *more,
        str(folder),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", **variables}
    environment["PATH"] = environment["PATH"] if path is None else path
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("act", "names", "workers", "code", "said"),
    [
        (SKIP, "", 0, 0, "slurm: 1 ran, 1 skipped; browser: 0 ran, 0 skipped\n"),
        (SKIP, "slurm", 2, 1, "FAILED: all tests of slurm have to run here"),
        ("pass", "slurm", 0, 0, "slurm: 2 ran, 0 skipped"),
        ("pass", "slurm munge", 0, 4, "munge is none of slurm browser"),
    ],
    ids=["skipped", "skipped where it was to run", "ran", "not known"],
)
def test_a_skipped_test_fails_where_it_was_to_run(
    act: str, names: str, workers: int, code: int, said: str, tmp_path: Path
) -> None:
    found, text = run(tmp_path, act, f"-n{workers}", **{REQUIRE: names})
    assert (found, said in text) == (code, True), text


def test_that_none_ran_is_a_failure(tmp_path: Path) -> None:
    found, text = run(tmp_path, "pass", "-m", "not slurm", **{REQUIRE: "slurm"})
    assert (found, "slurm: 0 ran" in text, "1 passed" in text) == (1, True, True), text


def test_what_must_be_there_and_is_not_is_said_at_once(tmp_path: Path) -> None:
    found, text = run(tmp_path, "pass", path=str(tmp_path), **{REQUIRE: "browser"})
    assert (found, "there is no chromium" in text, "passed" in text) == (4, True, False), text
