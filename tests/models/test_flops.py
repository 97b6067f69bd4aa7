"""The FLOP formula against torch's FLOP counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sana_train.models.flops import forward_flops
from sana_train.models.sana_video import SanaVideoDiT


@pytest.mark.parametrize(
    ("patch", "grid", "num_context"), [([1, 1, 1], (3, 4, 4), 12), ([1, 2, 2], (2, 4, 6), 5)]
)
def test_formula_equals_flop_counter(patch: list[int], grid: tuple[int, int, int], num_context: int) -> None:
    model = SanaVideoDiT(8, patch, 2, 48, 4, 2, 2.5, 20, 16)
    context, mask = torch.randn(1, num_context, 20), torch.ones(1, num_context, dtype=torch.bool)
    # The counter sees the products inside attention only where it is computed step by step.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 8, *grid), torch.rand(1), model.prepare(context, mask))
    assert forward_flops(model, grid, num_context) == counter.get_total_flops()
