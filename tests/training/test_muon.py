"""Muon: orthogonal updates for matrices, AdamW for the rest."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sana_train.training import muon
from sana_train.training.muon import Muon, is_matrix, orthogonalise
from sana_train.training.optimiser import build_optimiser, clip_gradients, hold_back, set_step

BETAS = (0.9, 0.99)


def test_singular_vectors_stay_and_singular_values_get_near_one() -> None:
    torch.manual_seed(0)
    for rows, columns in ((20, 50), (50, 20), (32, 32)):
        u, _, vh = torch.linalg.svd(torch.randn(2, rows, columns), full_matrices=False)
        singular = torch.logspace(0, -2, u.shape[-1]).expand(2, -1)
        out = orthogonalise(u @ torch.diag_embed(singular) @ vh)
        core = u.mT @ out @ vh.mT
        values = core.diagonal(dim1=1, dim2=2)
        assert values.min() > 0.5
        assert values.max() < 1.3
        assert (core - torch.diag_embed(values)).abs().max() < 1e-4


def test_a_gradient_of_zero_moves_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(1, 16, 16)), torch.zeros(1, 16, 16))


def test_kernels_are_matrices_and_tables_biases_and_depthwise_kernels_are_not() -> None:
    assert is_matrix(nn.Linear(16, 48).weight)
    assert is_matrix(nn.Conv3d(16, 16, 3).weight)
    assert not is_matrix(nn.Conv3d(3, 6, 3).weight)
    assert not is_matrix(nn.Conv2d(64, 64, 3, groups=64).weight)
    assert not is_matrix(torch.zeros(6, 192))
    assert not is_matrix(torch.zeros(192))


def test_the_first_step_has_the_size_of_adamws() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.zeros(32, 16, 3, 3, 3))
    optimiser = Muon([{"params": [kernel]}], 1e-2, BETAS, 0.0, 1e-8)
    kernel.grad = 1e-3 * torch.randn_like(kernel)
    optimiser.step()
    rms = kernel.square().mean().sqrt().item()
    assert 0.5 * 0.2e-2 < rms < 1.5 * 0.2e-2
    assert (kernel * kernel.grad).sum() < 0


def test_the_rest_is_adamws_to_the_last_bit() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(16, 16), torch.randn(16)
    mine, theirs = nn.Parameter(bias.clone()), nn.Parameter(bias.clone())
    one = build_optimiser([{"params": [nn.Parameter(weight), mine]}], 1e-2, BETAS, 0.1, 1e-8, "muon")
    other = torch.optim.AdamW([theirs], lr=1e-2, betas=BETAS, weight_decay=0.1, eps=1e-8)
    for step in range(3):
        set_step(one, step, 1e-2, 0)
        for group in one.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 0.5 - step)
        theirs.grad = torch.full_like(theirs, 0.5 - step)
        one.step()
        other.step()
    assert torch.equal(mine, theirs)


def test_groups_keep_their_rate_and_their_start_in_both_halves() -> None:
    early, late = nn.Linear(16, 16), nn.Linear(16, 16)
    groups = [
        {"name": "new", "params": list(early.parameters())},
        {"name": "kept", "params": list(late.parameters()), "lr_scale": 0.5, "start_step": 5},
    ]
    optimiser = build_optimiser(groups, 1e-2, BETAS, 0.0, 1e-8, "muon")
    before = [p.detach().clone() for p in late.parameters()]
    for parameter in (*early.parameters(), *late.parameters()):
        parameter.grad = torch.ones_like(parameter)
    assert len(clip_gradients(hold_back(optimiser, 0), 1e9).shape) == 0
    set_step(optimiser, 0, 1e-2, 0)
    optimiser.step()
    assert all(torch.equal(p, q) for p, q in zip(late.parameters(), before, strict=True))
    assert not any(p in optimiser.state for p in late.parameters())
    set_step(optimiser, 5, 1e-2, 0)
    assert sorted(group["lr"] for group in optimiser.param_groups) == [0.5e-2, 0.5e-2, 1e-2, 1e-2]


SHAPES = ((16, 16), (16, 16), (24, 80), (80, 24), (24, 80), (48, 16))


def matrices(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], step: int, leave_out: int | None = None) -> None:
    for number, parameter in enumerate(params):
        generator = torch.Generator().manual_seed(100 * step + number)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if number == leave_out:
            parameter.grad = None


def two_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:3]}, {"params": params[3:], "lr": 3e-3}]


def test_it_moves_matrices_as_torchs_muon_does() -> None:
    """To 2 % of what a step moves: there it iterates in bfloat16 on a CPU, too."""
    mine, theirs = matrices(), matrices()
    one = Muon(two_groups(mine), 1e-2, BETAS, 0.1, 1e-8)
    other = torch.optim.Muon(
        two_groups(theirs), lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(4):
        for params, optimiser in ((mine, one), (theirs, other)):
            give_gradients(params, step, leave_out=1 if step == 2 else None)
            optimiser.step()
        with torch.no_grad():
            for number, (parameter, truth) in enumerate(zip(mine, theirs, strict=True)):
                moved = (matrices()[number] - truth).norm()
                assert (parameter - truth).norm() < 0.02 * moved
        assert all(
            torch.allclose(one.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"], atol=1e-6)
            for p, q in zip(mine, theirs, strict=True)
        )


def test_it_goes_on_from_its_own_state_and_from_torchs() -> None:
    straight = matrices()
    optimiser = Muon(two_groups(straight), 1e-2, BETAS, 0.1, 1e-8)
    twin = torch.optim.Muon(two_groups(matrices()), lr=1e-2)
    for step in range(2):
        give_gradients(straight, step)
        optimiser.step()
        give_gradients([p for group in twin.param_groups for p in group["params"]], step)
        twin.step()
    state, weights = copy.deepcopy(optimiser.state_dict()), [p.detach().clone() for p in straight]
    assert [sorted(each) for each in state["state"].values()] == [["momentum_buffer"]] * len(straight)
    give_gradients(straight, 2)
    optimiser.step()
    for saved in (state["state"], twin.state_dict()["state"]):
        resumed = [nn.Parameter(weight.clone()) for weight in weights]
        again = Muon(two_groups(resumed), 1e-2, BETAS, 0.1, 1e-8)
        again.load_state_dict({**state, "state": saved})
        give_gradients(resumed, 2)
        again.step()
        for parameter, truth in zip(resumed, straight, strict=True):
            assert torch.allclose(parameter, truth, rtol=0, atol=1e-6)


def test_large_models_are_updated_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    params, largest = matrices(), 24 * 80
    whole, sizes = matrices(), []
    found = muon._directions

    def watched(stacks: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes.append(sum(stack.numel() for stack in stacks))
        return found(stacks)

    for each, at_once in ((whole, 2**27), (params, largest + 16 * 16)):
        monkeypatch.setattr(muon, "_directions", watched)
        monkeypatch.setattr(muon, "_NUMBERS_AT_ONCE", at_once)
        sizes.clear()
        give_gradients(each, 0)
        Muon([{"params": each}], 1e-2, BETAS, 0.1, 1e-8).step()
    assert len(sizes) > 2
    assert max(sizes) <= largest + 16 * 16
    assert sum(sizes) == sum(parameter.numel() for parameter in params)
    for parameter, truth in zip(params, whole, strict=True):
        assert torch.allclose(parameter, truth, rtol=0, atol=1e-6)


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += "mm" in func.overloadpacket.__name__
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num", [1, 20])
def test_matrices_of_one_shape_cost_the_host_as_much_as_one(num: int) -> None:
    params = matrices(((16, 32),) * num)
    give_gradients(params, 0)
    with Products() as products:
        Muon([{"params": params}], 1e-2, BETAS, 0.0, 1e-8).step()
    assert products.num == 15
