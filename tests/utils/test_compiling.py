"""What the compiler gets wrong stays off, however something is compiled; results: tests/models/kernels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config

from sana_train.utils.compiling import compile_module, compiled_function

SOURCE = Path(__file__).parents[2] / "sana_train"


@pytest.mark.parametrize("way", ["function", "switches", "module"])
def test_sums_that_nobody_gets_are_off(way: str) -> None:
    with config.patch({"triton.mix_order_reduction": True}):
        if way == "module":
            compile_module(nn.Linear(2, 2))
        elif way == "switches":
            compiled_function(torch.sin, "default", {"triton.coalesce_tiling_analysis": False})
        else:
            compiled_function(torch.sin)
        assert not config.triton.mix_order_reduction


def test_products_in_float32_have_gradients_in_float32() -> None:
    def loss(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return (x @ weight).square().sum()

    torch.compiler.reset()
    inputs = [torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    found = []
    for way in (loss, compiled_function(loss)):
        leaves = [each.clone().requires_grad_() for each in inputs]
        with torch.autocast("cpu", torch.bfloat16):
            value = way(*leaves)
        found.append(torch.autograd.grad(value, leaves))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_nothing_is_compiled_in_another_way() -> None:
    ways = re.compile(r"torch\.compile\(|(?<!\bre)\.compile\(")
    found = [path for path in sorted(SOURCE.rglob("*.py")) if ways.search(path.read_text())]
    assert found == [SOURCE / "utils/compiling.py"]
