"""Evaluations on the grid: of the averaged weights, once per step, and able to end a run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from training_harness import assert_same_run, launch, make_task, metrics

from sana_train.training.callbacks.convergence import ConvergenceCallback
from sana_train.training.callbacks.two_stage import TwoStageCallback
from sana_train.training.tasks.flow import FlowTask

GRID = [0, 2, 3, 5]


class Watch:
    """An evaluation that reports the mean weight it was shown."""

    def __init__(self, task: FlowTask, stop_at: int | None = None) -> None:
        self.model: nn.Module = task.model
        self.stop_at = stop_at
        self.seen: list[int] = []
        self.modes: set[tuple[bool, bool]] = set()
        self.callback = ConvergenceCallback(GRID, self.evaluate, lambda step, values: step == self.stop_at)

    def evaluate(self, step: int) -> dict[str, float]:
        self.seen.append(step)
        self.modes.add((self.model.training, torch.is_grad_enabled()))
        return {"heldout/weight": self.model.get_parameter("patch_embed.weight").sum().item()}


def test_the_averaged_weights_are_evaluated_and_training_goes_on_unchanged(tmp_path: Path) -> None:
    task = make_task()
    watch = Watch(task)
    shell = launch(tmp_path / "watched", max_steps=5, task=task, callbacks=[watch.callback])
    assert watch.seen == GRID
    assert watch.modes == {(False, False)}
    assert task.model.training
    last = metrics(shell.run_dir)[-1]
    assert shell.ema is not None
    assert last == {"step": 5, "heldout/weight": shell.ema.average["patch_embed.weight"].sum().item()}
    assert last["heldout/weight"] != task.model.get_parameter("patch_embed.weight").sum().item()
    plain = launch(tmp_path / "plain", max_steps=5)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, task.model.state_dict()[name])


def test_a_resumed_run_does_not_repeat_evaluations(tmp_path: Path) -> None:
    def run(name: str, max_steps: int) -> tuple[Watch, object]:
        task = make_task()
        watch = Watch(task)
        return watch, launch(tmp_path / name, max_steps=max_steps, task=task, callbacks=[watch.callback])

    _, straight = run("straight", 5)
    run("parts", 3)
    watch, resumed = run("parts", 5)
    assert watch.seen == [5]
    assert_same_run(straight, resumed)  # type: ignore[arg-type]


def test_a_collapse_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    task = make_task()
    watch = Watch(task, stop_at=2)
    shell = launch(tmp_path, max_steps=9, task=task, callbacks=[watch.callback], checkpoint_every=9)
    assert shell.completed_steps == 2
    assert (tmp_path / "checkpoints" / "step_0000002" / "training_state").is_dir()


def test_two_stages_are_judged_at_their_steps_alone(tmp_path: Path) -> None:
    task = make_task()
    watch = Watch(task)
    judge = TwoStageCallback([2, 3], watch.evaluate, lambda step, values: False)
    shell = launch(tmp_path / "run", max_steps=4, task=task, callbacks=[judge])
    assert watch.seen == [2, 3]
    logged = [line["step"] for line in metrics(shell.run_dir) if "heldout/weight" in line]
    assert logged == [2, 3]
    first = launch(tmp_path / "first", max_steps=1, task=(other := make_task()), callbacks=[
        TwoStageCallback([0], (seen := Watch(other)).evaluate, lambda step, values: False)
    ])  # fmt: skip
    assert seen.seen == [0]
    assert first.completed_steps == 1
