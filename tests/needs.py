"""What tests need beside Python: they are skipped with the reason where it is missing.

Not where it must be there: ``.ci/run`` installs SLURM and a browser and names them in the variable below.
Then a missing one is an error, and so is a run in which a test of theirs was skipped, or none ran.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

from tests.slurm.virtual_cluster import missing_daemons

REQUIRE = "SANA_TRAIN_TESTS_REQUIRE"
COUNTED = ("slurm", "browser")
_NEEDS = "needs"


def required() -> list[str]:
    """Markers whose tests must run, all of them.

    Raises:
        pytest.UsageError: the variable names something else.
    """
    names = os.environ.get(REQUIRE, "").split()
    if unknown := sorted({*names} - {*COUNTED}):
        raise pytest.UsageError(f"{REQUIRE}={' '.join(names)}: {unknown[0]} is none of {' '.join(COUNTED)}")
    return names


def _missing() -> dict[str, str]:
    """Marker -> why tests that carry it cannot run here."""
    import torch

    num_gpus = torch.cuda.device_count()
    reasons = {
        "gpu": "" if num_gpus else "needs a CUDA device; torch sees none",
        "multi_gpu": "" if num_gpus > 1 else f"needs two CUDA devices; torch sees {num_gpus}",
        **_missing_programs(),
    }
    return {marker: reason for marker, reason in reasons.items() if reason}


def _missing_programs() -> dict[str, str]:
    slurm = missing_daemons()
    return {
        "slurm": f"needs SLURM; there is no {', no '.join(slurm)}" if slurm else "",
        "browser": "" if shutil.which("chromium") else "needs a headless browser; there is no chromium",
    }


def pytest_configure(config: pytest.Config) -> None:
    programs = _missing_programs()
    missing = [programs[name] for name in required() if programs[name]]
    if missing and not _is_worker(config):  # which would each say it again
        raise pytest.UsageError(f"{REQUIRE}={os.environ[REQUIRE]}, but {'; '.join(missing)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = _missing()
    for item in items:
        item.user_properties += [(_NEEDS, name) for name in COUNTED if item.get_closest_marker(name)]
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (
        not _is_worker(session.config)
        and session.exitstatus == pytest.ExitCode.OK
        and _fell_short(session.config)
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Before pytest's own line, as a run without SLURM or a browser passes, too."""
    told = [f"{name}: {ran} ran, {skipped} skipped" for name, (ran, skipped) in _counts(config).items()]
    terminalreporter.write_line("; ".join(told))
    for name in _fell_short(config):
        terminalreporter.write_line(
            f"FAILED: all tests of {name} have to run here ({REQUIRE}); -rs says why not"
        )


def _counts(config: pytest.Config) -> dict[str, tuple[int, int]]:
    """Name -> how many of its tests ran, how many were skipped."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")

    def count(marker: str, *outcomes: str) -> int:
        reports = [each for outcome in outcomes for each in reporter.getreports(outcome)]
        return sum([_NEEDS, marker] in [list(pair) for pair in each.user_properties] for each in reports)

    return {name: (count(name, "passed", "failed"), count(name, "skipped")) for name in COUNTED}


def _fell_short(config: pytest.Config) -> list[str]:
    counts = _counts(config)
    return [name for name in required() if counts[name][0] == 0 or counts[name][1] > 0]


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")
