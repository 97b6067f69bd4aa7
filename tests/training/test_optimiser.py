"""AdamW by groups: warm-up, staged starts, clipping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from training_harness import NEW_LAYERS, launch, make_task, metrics

from sana_train.training.optimiser import build_optimiser, clip_gradients, hold_back, set_step


def two_groups() -> torch.optim.AdamW:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    groups = [
        {"name": "new", "params": [first]},
        {"name": "kept", "params": [second], "lr_scale": 0.5, "start_step": 10},
    ]
    return build_optimiser(groups, 1e-2, (0.9, 0.99), 0.0, 1e-8)


def rates(step: int, warmup_steps: int) -> list[float]:
    optimiser = two_groups()
    set_step(optimiser, step, 1e-2, warmup_steps)
    return [group["lr"] for group in optimiser.param_groups]


def test_warm_up_is_linear_from_each_groups_own_start_then_constant() -> None:
    assert rates(0, 4) == pytest.approx([0.25e-2, 0.0])
    assert rates(3, 4) == pytest.approx([1e-2, 0.0])
    assert rates(10, 4) == pytest.approx([1e-2, 0.125e-2])
    assert rates(13, 4) == rates(99_999, 4) == pytest.approx([1e-2, 0.5e-2])
    assert rates(10, 0) == pytest.approx([1e-2, 0.5e-2])


def test_a_group_may_warm_up_longer_than_the_run() -> None:
    kept = {"params": [nn.Parameter(torch.ones(2))], "start_step": 10, "warmup_steps": 100}
    optimiser = build_optimiser([kept], 1e-2, (0.9, 0.99), 0.0, 1e-8)
    lrs = []
    for step in (9, 10, 59, 109, 500):
        set_step(optimiser, step, 1e-2, 4)
        lrs.append(optimiser.param_groups[0]["lr"])
    assert lrs == pytest.approx([0.0, 1e-4, 5e-3, 1e-2, 1e-2])


def test_a_group_that_waits_has_rate_zero_without_warm_up_too() -> None:
    assert rates(9, 0) == pytest.approx([1e-2, 0.0])


def test_a_group_that_waits_keeps_weights_and_empty_moments() -> None:
    optimiser = two_groups()
    first, second = (group["params"][0] for group in optimiser.param_groups)
    for step in (8, 9, 10):
        first.grad, second.grad = torch.full((3,), 3.0), torch.full((2,), 4.0)
        live = hold_back(optimiser, step)
        set_step(optimiser, step, 1e-2, 0)
        optimiser.step()
        if step < 10:
            assert live == [first]
            assert second not in optimiser.state
            assert torch.equal(second, torch.ones(2))
    assert optimiser.state[first]["step"] == 3
    assert optimiser.state[second]["step"] == 1
    assert not torch.equal(second, torch.ones(2))


def test_a_run_trains_the_kept_layers_only_from_their_start(tmp_path: Path) -> None:
    task = make_task(kept_start_step=2)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    shell = launch(tmp_path, max_steps=2, task=task)
    moments = shell.trainer.optimizers[0].state
    for name, parameter in task.model.named_parameters():
        is_new = name.startswith(NEW_LAYERS)
        assert (parameter in moments) == is_new
        assert torch.equal(parameter, before[name]) != is_new
    task = make_task(kept_start_step=2)
    shell = launch(tmp_path, max_steps=3, task=task)
    moments = shell.trainer.optimizers[0].state
    steps = {name: moments[p]["step"].item() for name, p in task.model.named_parameters()}
    assert steps == {name: 3 if name.startswith(NEW_LAYERS) else 1 for name in before}


def test_the_rate_of_each_step_is_logged(tmp_path: Path) -> None:
    launch(tmp_path, max_steps=4, lr=1e-2, warmup_steps=3)
    assert [line["train/lr"] for line in metrics(tmp_path)] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])


def test_clipping_scales_only_what_is_too_long() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 10.0).item() == pytest.approx(5.0)
    assert parameters[1].grad.item() == 4.0
    assert clip_gradients(parameters, 0.5).item() == pytest.approx(5.0)
    assert parameters[0].grad[0].item() == pytest.approx(0.3, rel=1e-4)
    assert parameters[1].grad.item() == pytest.approx(0.4, rel=1e-4)


def test_weights_that_do_not_require_gradients_are_left_out() -> None:
    frozen, trained = nn.Parameter(torch.ones(1), requires_grad=False), nn.Parameter(torch.ones(1))
    optimiser = build_optimiser([{"params": [frozen, trained]}], 1e-2, (0.9, 0.99), 0.1, 1e-8)
    assert optimiser.param_groups[0]["params"] == [trained]
