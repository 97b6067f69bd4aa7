"""What blocks compute again: the same results, the work that is stated, and less memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sana_train.models.layers.recompute import Recompute, product, recomputed_at_once
from sana_train.models.sana_video import SanaVideoDiT

GRID = (3, 4, 5)


def run(
    model: SanaVideoDiT, policy: Recompute, loss: Any = None, grid: tuple[int, int, int] = GRID
) -> tuple[Tensor, dict[str, Tensor]]:
    """(output, gradients) of two clips with captions of different lengths."""
    model.set_recompute(policy)
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    rng = torch.Generator().manual_seed(1)
    latents, context = torch.randn(2, 4, *grid, generator=rng), torch.randn(2, 7, 10, generator=rng)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    arguments = (
        latents.to(device),
        torch.tensor([0.3, 0.9], device=device),
        context.to(device),
        mask.to(device),
    )

    def forward(latents: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        return model(latents, t, model.prepare(context, mask))

    output = (forward if loss is None else loss(forward))(*arguments)
    output.square().mean().backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("policy", ["selective", "full"])
@pytest.mark.parametrize("autocast", [False, True])
def test_results_are_the_same_to_the_bit(make_dit, policy: Recompute, autocast: bool) -> None:
    model = make_dit()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain, expected = run(model, "none")
        output, gradients = run(model, policy)
    assert torch.equal(output, plain)
    assert gradients.keys() == expected.keys() == dict(model.named_parameters()).keys()
    assert not [name for name in expected if not torch.equal(gradients[name], expected[name])]


def test_the_work_done_again(make_dit) -> None:
    """Selective repeats no matrix product and no softmax attention, full repeats those of every block."""

    def count(policy: Recompute) -> dict[str, int]:
        with FlopCounterMode(display=False) as counter:
            run(model, policy)
        found = {str(each): count for each, count in counter.get_flop_counts()["Global"].items()}
        products = sum(found.get(f"aten.{name}", 0) for name in ("mm", "addmm"))
        return {"products": products, "convolution": found["aten.convolution"]}

    model = make_dit()
    none, selective, full = count("none"), count("selective"), count("full")
    assert selective["products"] == none["products"]
    assert selective["convolution"] == full["convolution"] == 2 * none["convolution"]
    tokens, width, depth = 2 * 60, 48, 2
    per_token = 4 + 2 + 3 * 2.5 + 3  # self-attention, q and out, Mix-FFN with 2M and M, temporal: each D x D
    again = 2 * depth * (tokens * per_token * width**2 + 2 * 7 * 2 * width**2)
    assert full["products"] - none["products"] == again


def test_key_names_and_evaluation_are_untouched(make_dit) -> None:
    model = make_dit()
    names = list(model.state_dict())
    model.set_recompute("full")
    assert list(model.state_dict()) == names
    with torch.no_grad():
        context, mask = torch.randn(1, 7, 10), torch.ones(1, 7, dtype=torch.bool)
        assert torch.isfinite(
            model(torch.randn(1, 4, *GRID), torch.rand(1), model.prepare(context, mask))
        ).all()


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_compiled(make_dit, policy: Recompute) -> None:
    model = make_dit()
    plain, expected = run(model, "none")
    torch.compiler.reset()
    compiled = partial(torch.compile, fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
    output, gradients = run(model, policy, compiled)
    torch.testing.assert_close(output, plain)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.gpu
def test_memory_falls(make_dit) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    model = make_dit(depth=8).cuda()
    grid, peaks = (8, 32, 32), {}  # tokens enough for activations to be most of it: gradients are the same
    for policy in ("none", "selective", "full"):
        run(model, policy, grid=grid)
        model.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(model, policy, grid=grid)
        peaks[policy] = torch.cuda.max_memory_allocated() - before
    assert peaks["full"] < peaks["selective"] < peaks["none"]


@pytest.mark.parametrize(("policy", "computed"), [("none", 1), ("selective", 1), ("full", 2)])
def test_at_once_keeps_products_and_gives_the_same_to_the_bit(policy: Recompute, computed: int) -> None:
    """Under autocast, which the backward pass must find again; a weight has no gradient, one no use."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=rng).requires_grad_()
    scale, weight = torch.randn(4, generator=rng).requires_grad_(), torch.randn(4, 4, generator=rng)
    unused = torch.zeros(1).requires_grad_()

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
            ctx.save_for_backward(x, scale)
            return product(lambda: (products.append(1), x * scale)[1])

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            x, scale = ctx.saved_tensors
            return grad * scale, (x * grad).sum(0)

    def layers(x: Tensor, factor: float, shift: Tensor) -> Tensor:
        result = F.linear(Scaled.apply(x * factor, scale), weight)
        assert result.dtype == torch.bfloat16
        return result.float() + shift

    found = []
    for function in (
        lambda *given: layers(*given),
        lambda *given: recomputed_at_once(policy, layers, [scale, weight, unused], *given),
    ):
        products: list[int] = []
        with torch.autocast("cpu", torch.bfloat16):
            result = function(x, 0.5, torch.ones(4))
        found.append((result.detach(), *torch.autograd.grad(result.square().sum(), (x, scale))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(products) == computed
