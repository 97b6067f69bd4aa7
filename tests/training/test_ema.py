"""Averaged weights: the formula, and the swap that evaluation relies on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sana_train.training.ema import Ema


def set_weights(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_each_step_folds_in_with_the_ramped_decay() -> None:
    model = nn.Linear(2, 2)
    set_weights(model, 1.0)
    ema = Ema(model, decay=0.5)
    expected = 1.0
    for step, value in enumerate([3.0, -2.0, 7.0, 0.5, 4.0, 4.0, 9.0, -1.0, 2.0], start=1):
        set_weights(model, value)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert (1 + 9) / (10 + 9) > 0.5 > (1 + 1) / (10 + 1)  # both branches were taken
    assert torch.allclose(ema.average["weight"], torch.full((2, 2), expected))


def test_after_the_ramp_a_constant_is_approached_at_the_long_run_decay() -> None:
    model = nn.Linear(1, 1)
    set_weights(model, 0.0)
    ema = Ema(model, decay=0.9)
    set_weights(model, 1.0)
    for step in range(1000, 1020):
        ema.update(step)
    assert ema.average["bias"].item() == pytest.approx(1 - 0.9**20, rel=1e-5)


def test_average_is_fp32_of_a_model_in_bf16() -> None:
    model = nn.Linear(1, 1).bfloat16()
    set_weights(model, 1.0)
    ema = Ema(model, decay=0.999)
    set_weights(model, 1.0078125)  # one bf16 step further: a bf16 average would not move
    ema.update(10_000)
    assert ema.average["weight"].dtype == torch.float32
    assert ema.average["weight"].item() == pytest.approx(1.0 + 0.0078125e-3, abs=1e-6)


def test_swap_computes_with_averages_and_restores_even_after_an_error() -> None:
    model = nn.BatchNorm1d(2)  # parameters and buffers
    ema = Ema(model, decay=0.9)
    set_weights(model, 5.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with ema.swapped_in():
        assert torch.equal(model.weight, torch.ones(2))
        assert not model(torch.randn(4, 2)).requires_grad
    with pytest.raises(KeyboardInterrupt), ema.swapped_in():
        raise KeyboardInterrupt
    for name in ("weight", "bias"):
        assert torch.equal(model.state_dict()[name], before[name])
    assert model.weight.requires_grad


def test_state_holds_averages_and_present_buffers_and_loads_back() -> None:
    model = nn.BatchNorm1d(2)
    ema = Ema(model, decay=0.0)
    set_weights(model, 3.0)
    model.running_mean.fill_(7.0)
    ema.update(1)
    state = {name: value.clone() for name, value in ema.state_dict().items()}
    assert set(state) == set(model.state_dict())
    assert torch.equal(state["running_mean"], torch.full((2,), 7.0))
    other = Ema(nn.BatchNorm1d(2), decay=0.9)
    other.load_state_dict(state)
    assert torch.equal(other.average["weight"], torch.full((2,), 3.0))
    state["weight"].fill_(0.0)
    assert torch.equal(other.average["weight"], torch.full((2,), 3.0))  # a copy


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_never_or_always_forgets_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"training\.ema_decay is"):
        Ema(nn.Linear(1, 1), decay)
