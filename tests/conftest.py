"""Skips with a reason what this machine cannot run."""

from __future__ import annotations

import shutil

import pytest


def _missing() -> dict[str, str]:
    """Marker -> why tests that carry it cannot run here."""
    import torch

    num_gpus = torch.cuda.device_count()
    reasons = {
        "gpu": "" if num_gpus else "needs a CUDA device; torch sees none",
        "multi_gpu": "" if num_gpus > 1 else f"needs two CUDA devices; torch sees {num_gpus}",
        "slurm": "" if shutil.which("sbatch") else "needs SLURM; there is no sbatch",
        "browser": "" if shutil.which("chromium") else "needs a headless browser; there is no chromium",
    }
    return {marker: reason for marker, reason in reasons.items() if reason}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = _missing()
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
