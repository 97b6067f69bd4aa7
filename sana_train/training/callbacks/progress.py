"""A progress bar over the run's steps, with rate and ETA."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sana_train.training.callbacks.base import StepCallback
from sana_train.training.shell import TrainingShell


class ProgressCallback(StepCallback):
    """Shows steps, elapsed time and ETA; a plain line now and then where there is no terminal."""

    def __init__(self, console: Console, max_steps: int) -> None:
        self.console, self.max_steps = console, max_steps
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        if not self.console.is_terminal:
            return
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=self.console)
        self._progress.start()
        self._task = self._progress.add_task("training", total=self.max_steps, completed=step)

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step)
        elif step % max(1, self.max_steps // 20) == 0:
            self.console.print(f"step {step}/{self.max_steps}", highlight=False)

    def on_run_end(self, shell: TrainingShell, step: int) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_exception(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
