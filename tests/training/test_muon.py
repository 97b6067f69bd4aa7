"""Muon: orthogonal updates for matrices, AdamW for the rest."""

from __future__ import annotations

import torch
from torch import nn

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
