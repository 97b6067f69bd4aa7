"""The FLOP formulas against torch's FLOP counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sana_train.models.flops import forward_flops, recomputed_flops, training_flops
from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT

sizes = pytest.mark.parametrize(
    ("patch", "grid", "num_context"), [([1, 1, 1], (3, 4, 4), 12), ([1, 2, 2], (2, 4, 6), 5)]
)


def run(
    patch: list[int],
    grid: tuple[int, int, int],
    num_context: int,
    *,
    backward: bool,
    recompute: Recompute = "none",
    backend: SDPBackend = SDPBackend.MATH,
) -> tuple[SanaVideoDiT, dict[str, int]]:
    """(model, FLOPs by operator) of one sample."""
    model = SanaVideoDiT(8, patch, 2, 48, 4, 2, 2.5, 20, 16).requires_grad_(backward)
    model.set_recompute(recompute)
    context, mask = torch.randn(1, num_context, 20), torch.ones(1, num_context, dtype=torch.bool)
    # The counter sees the products inside attention only where it is computed step by step.
    with sdpa_kernel(backend), FlopCounterMode(display=False) as counter:
        output = model(torch.randn(1, 8, *grid), torch.rand(1), model.prepare(context, mask))
        if backward:
            output.sum().backward()
    return model, {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}


@sizes
def test_forward_formula_equals_flop_counter(
    patch: list[int], grid: tuple[int, int, int], num_context: int
) -> None:
    model, counts = run(patch, grid, num_context, backward=False)
    assert forward_flops(model, grid, num_context) == sum(counts.values())


@sizes
def test_training_formula_equals_flop_counter(
    patch: list[int], grid: tuple[int, int, int], num_context: int
) -> None:
    """Without convolutions: the counter forgets their groups in the backward pass."""
    model, counts = run(patch, grid, num_context, backward=True)
    convolutions = counts.pop("aten.convolution")
    assert counts.pop("aten.convolution_backward") > 2 * convolutions
    assert training_flops(model, grid, num_context) - 3 * convolutions == sum(counts.values())


@sizes
@pytest.mark.parametrize("policy", ["selective", "full"])
def test_what_is_computed_again_equals_flop_counter(
    patch: list[int], grid: tuple[int, int, int], num_context: int, policy: Recompute
) -> None:
    # Selective keeps softmax attention where it is one operation, which the counter does not see into.
    backend = SDPBackend.MATH if policy == "full" else SDPBackend.FLASH_ATTENTION
    model, plain = run(patch, grid, num_context, backward=True, backend=backend)
    _, counts = run(patch, grid, num_context, backward=True, backend=backend, recompute=policy)
    assert recomputed_flops(model, grid, num_context, policy) == sum(counts.values()) - sum(plain.values())
