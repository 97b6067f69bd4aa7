"""Why a run ended, in its own directory: the log of a job that failed is elsewhere, or gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sana_train.cli.run_id import IDENTITY_FILE
from sana_train.training.stall_monitor import FAILURE_FILE
from sana_train.training.trainer import is_global_zero
from sana_train.utils.files import write_json


@contextmanager
def failure_recorded(run_dir: Path) -> Iterator[None]:
    """Write ``failure.json`` if an error ends the block; what an earlier process left is removed first.

    Only into a directory that the run has claimed, since a start that fails leaves its id free. Of several
    ranks the first to fail is kept: the others fail because it did.
    """
    path = run_dir / FAILURE_FILE
    if is_global_zero():
        path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if (run_dir / IDENTITY_FILE).is_file() and not path.exists():
            with suppress(OSError):  # a full disk may be what the error is about, and it is told either way
                write_json(path, {"error": type(error).__name__, "reason": str(error)})
        raise
