"""What code ran on what."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from sana_train import __version__


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and the commit of the code, as far as they are known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "sana_train": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": name,
        "num_threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    """Model and number of cores, as Linux tells them; the architecture elsewhere."""
    models = re.findall(r"^model name\s*: (.+)$", _read_or_empty("/proc/cpuinfo"), re.MULTILINE)
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def _read_or_empty(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _commit() -> str:
    """What SANA_TRAIN_COMMIT says, for copies of a checkout; else the commit this package lies in."""
    if named := os.environ.get("SANA_TRAIN_COMMIT"):
        return named
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
