"""AdamW with moments in 8 bits: refused without its library, counted without it, close to AdamW with it."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training import eight_bit
from sana_train.training.memory import step_memory
from sana_train.training.optimiser import OPTIMISERS, build_optimiser, missing_library
from sana_train.training.optimiser_state import optimiser_state, prepare_optimiser_state, take_over_counts

BETAS = (0.9, 0.95)
needs_library = pytest.mark.skipif(
    eight_bit.missing_bitsandbytes() is not None, reason="bitsandbytes is not installed"
)


def network() -> list[nn.Parameter]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(100, 60), nn.Linear(60, 4), nn.Conv2d(32, 32, 3))
    return list(layers.parameters())


def build(parameters: list[nn.Parameter], name: Any = "adamw_8bit") -> torch.optim.Optimizer:
    return build_optimiser([{"params": parameters}], 1e-2, BETAS, 0.0, 1e-8, name)


def step(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()


def test_without_its_library_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else real(name, *more)
    )
    with pytest.raises(ValueError, match=r"adamw_8bit needs bitsandbytes.*\.\[eight_bit\].*=adamw"):
        build(network())
    assert [name for name in OPTIMISERS if missing_library(name)] == ["adamw_8bit"]


def test_a_plan_counts_a_quarter_of_adamws_moments_without_the_library() -> None:
    def moments(name: Any) -> int:
        memory = step_memory(
            lambda: SanaVideoDiT(4, [1, 1, 1], 1, 96, 2, 3, 2.5, 10, 7), (4, 3, 4, 5), micro_batch=1,
            is_accumulating=False, recompute="none", optimiser=name, use_autocast=True,
        )  # fmt: skip
        return memory.optimiser

    assert 0.25 < moments("adamw_8bit") / moments("adamw") < 0.32


@needs_library
def test_its_state_is_as_large_as_it_is_counted() -> None:
    parameters = network()
    optimiser = build(parameters)
    step(optimiser, parameters, 1)
    tensors = [v for each in optimiser.state.values() for v in each.values() if isinstance(v, Tensor)]
    assert sum({t.data_ptr(): t.nbytes for t in tensors}.values()) == eight_bit.state_bytes(parameters)


@needs_library
def test_steps_are_nearly_adamws() -> None:
    ours, theirs = network(), network()
    start = [parameter.detach().clone() for parameter in ours]
    one, other = build(ours), build(theirs, "adamw")
    for seed in range(5):
        step(one, ours, seed)
        step(other, theirs, seed)
    for before, mine, exact in zip(start, ours, theirs, strict=True):
        moved = (exact - before).norm()
        assert (mine - exact).norm() < 0.1 * moved


@needs_library
def test_restored_moments_and_counts_go_on_bit_for_bit() -> None:
    straight, stopped = network(), network()
    one, other = build(straight), build(stopped)
    for seed in range(2):
        step(one, straight, seed)
        step(other, stopped, seed)
    saved = {name: value.clone() for name, value in optimiser_state(other).items()}
    again = build(stopped)
    flat = prepare_optimiser_state(again, set(saved))
    for name, value in flat.items():
        value.copy_(saved[name])
    take_over_counts(again, flat)
    assert {state["step"] for state in again.state.values()} == {2}
    step(one, straight, 2)
    step(again, stopped, 2)
    assert all(torch.equal(a, b) for a, b in zip(straight, stopped, strict=True))
