"""Evaluates convergence on a fixed grid of steps, from step 0 on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sana_train.training.callbacks.base import StepCallback
from sana_train.training.shell import TrainingShell


class ConvergenceCallback(StepCallback):
    """Calls ``evaluate(step) -> metrics`` at each grid step, with averaged weights in the model.

    The first rank evaluates while the others wait for its verdict.

    Args:
        grid: steps to evaluate at.
        evaluate: from the evaluation floor; also keeps what figures need.
        on_metrics: called with (step, metrics) after each; a True answer ends the run (a collapse).
    """

    def __init__(
        self,
        grid: Sequence[int],
        evaluate: Callable[[int], dict[str, float]],
        on_metrics: Callable[[int, dict[str, float]], bool],
    ) -> None:
        self.grid = frozenset(grid)
        self.evaluate, self.on_metrics = evaluate, on_metrics

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        # A resumed run evaluated this step before it stopped.
        if step == 0:
            self._evaluate(shell, step)

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        if step in self.grid:
            shell.check_finite()
            self._evaluate(shell, step)

    def _evaluate(self, shell: TrainingShell, step: int) -> None:
        with shell.paused(), shell.averages_shown():
            has_to_stop = shell.trainer.is_global_zero and self._measure(shell, step)
            if shell.trainer.strategy.broadcast(has_to_stop):
                shell.trainer.should_stop = True

    def _measure(self, shell: TrainingShell, step: int) -> bool:
        was_training = shell.model.training
        shell.model.eval()
        metrics = self.evaluate(step)
        shell.model.train(was_training)
        shell.report(metrics)
        return self.on_metrics(step, metrics)
