"""One real cluster for all tests of this folder, and programs that stand in for Python in its jobs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.needs import required
from tests.slurm.virtual_cluster import ClusterError, VirtualCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[VirtualCluster]:
    """Two virtual nodes, n1 and n2, of two CPUs and two GPUs that are empty files."""
    root = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: sockets lie in it
    here = VirtualCluster(root)
    try:
        here.start()
        yield here
    except ClusterError as error:
        if "slurm" in required():
            raise
        pytest.skip(f"SLURM is installed and does not start here: {error}")
    finally:
        here.stop()
        shutil.rmtree(root)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Variables of a job in which the given lines of bash run where Python would; ``$1`` is ``train.py``."""

    def write(lines: str) -> dict[str, str]:
        file = tmp_path / "program"
        file.write_text(f"#!/bin/bash\n{lines}\n")
        file.chmod(0o755)
        return {"SANA_TRAIN_PYTHON": str(file)}

    return write
