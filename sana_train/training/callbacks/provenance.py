"""What ran, on what, and proof that the frozen parts stayed frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sana_train.training.callbacks.base import StepCallback
from sana_train.training.shell import TrainingShell
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json
from sana_train.utils.hashing import weights_hash


class ProvenanceCallback(StepCallback):
    """Writes ``run.json`` and hashes every frozen module before and after training.

    Args:
        run: run id, configuration and the like; written as they are.
    """

    def __init__(self, run: dict[str, Any]) -> None:
        self.run = run
        self._before: dict[str, str] = {}

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        self._before = _hashes(shell)
        if shell.resume_from is not None:
            self._require_same_frozen(shell.run_dir / "run.json")
        self._write(shell, {"frozen_before": self._before})

    def on_run_end(self, shell: TrainingShell, step: int) -> None:
        after = _hashes(shell)
        self._write(shell, {"completed_steps": step, "frozen_before": self._before, "frozen_after": after})
        if after != self._before:
            raise RuntimeError(
                f"a frozen module changed during training: {self._before} became {after}. Its weights "
                "must not be in an optimiser; every recovery number of this run is void"
            )

    def _write(self, shell: TrainingShell, facts: dict[str, Any]) -> None:
        if shell.trainer.is_global_zero:
            record = {**self.run, "environment": environment(shell.device), **facts}
            write_json(shell.run_dir / "run.json", record)

    def _require_same_frozen(self, path: Path) -> None:
        """The frozen parts must be those with which the run began.

        Raises:
            ValueError: naming each part that differs.
        """
        if not path.is_file():
            return  # a checkpoint that was copied without its run
        try:
            began = json.loads(path.read_text()).get("frozen_before", {})
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}); put back a copy, or remove it to go on without the proof that "
                "the frozen parts are those with which the run began"
            ) from error
        names = sorted(
            name for name in began.keys() | self._before.keys() if began.get(name) != self._before.get(name)
        )
        if names:
            changes = "; ".join(
                f"{n}: {began.get(n, 'none')} then, {self._before.get(n, 'none')} now" for n in names
            )
            raise ValueError(
                f"the frozen parts are not those with which {path.parent.name} began ({changes}). Put the "
                "former weights back, or start another run with run_id=<a new name>"
            )


def _hashes(shell: TrainingShell) -> dict[str, str]:
    frozen = enumerate(shell.task.frozen)  # two of them may be of one class
    return {f"{position}.{type(module).__name__}": weights_hash(module) for position, module in frozen}
