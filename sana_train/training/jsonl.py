"""metrics.jsonl: one line per logged step, always on, readable while the run goes on."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from sana_train.utils.files import publish_file


class JsonlLogger(Logger):
    """Appends ``{"step": n, name: value, ...}`` lines to ``<run_dir>/metrics.jsonl``.

    Args:
        run_dir: the run's directory.
        resume_step: lines past this step belong to work that a resume repeats, and are dropped;
            at 0 all do, since a run that starts evaluates step 0 again.
    """

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        super().__init__()
        self.path = run_dir / "metrics.jsonl"
        self._drop_after(resume_step)

    @rank_zero_only
    def _drop_after(self, step: int) -> None:
        if not self.path.is_file():
            return
        kept = [line for line in read_jsonl(self.path) if step and line["step"] <= step]
        with publish_file(self.path) as scratch:
            scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
        except OSError as error:  # from a write it names no file
            raise OSError(
                f"{self.path} cannot be written ({error}). Once it can, the same command goes on from the "
                "last full checkpoint"
            ) from error

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration is in run.json."""


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file; a last line cut short by a kill is left out.

    Raises:
        ValueError: any other line cannot be read.
    """
    parsed = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            parsed.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} is damaged ({error}); take it out or put back a copy of the file, "
                "and give the same command again"
            ) from error
    return parsed
