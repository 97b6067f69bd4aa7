"""The DiT by each way of ``kernels``: the reference's results, whatever is recomputed, cached or ragged."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from sana_train.models.layers.kernels import Kernels
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.memory import step_memory

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="kernels need Triton: pip install triton"
)
interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="float32 is computed by the reference on a GPU; see test_on_gpu.py"
)
GRID = (2, 3, 3)


def run(model: SanaVideoDiT, kernels: Kernels, t: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """(velocity, gradients) of two clips whose captions have gaps and different lengths."""
    model.set_kernels(kernels)
    model.set_recompute(options.get("recompute", "none"))
    model.zero_grad(set_to_none=True)
    rng = torch.Generator().manual_seed(1)
    latents, context = torch.randn(2, 4, *GRID, generator=rng), torch.randn(2, 7, 10, generator=rng)
    mask = torch.tensor([[1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0, 0]])
    size = len(t)
    velocity = model(latents[:size], t, model.prepare(context[:size], mask[:size]))
    velocity.square().mean().backward()
    return velocity.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_near(found: tuple[Tensor, dict[str, Tensor]], exact: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], exact[0], rtol=1e-4, atol=1e-5)
    assert found[1].keys() == exact[1].keys()
    for name, gradient in exact[1].items():
        assert float((found[1][name] - gradient).norm() / gradient.norm()) < 1e-4, name


@needs_triton
@interpreted
def test_fused_is_the_reference_in_float32(make_dit) -> None:
    model, t = make_dit(depth=1), torch.tensor([0.3, 0.9])
    exact = run(model, "reference", t)
    fused = run(model, "fused", t)
    assert_near(fused, exact)
    for policy in ("full", "selective"):
        again = run(model, "fused", t, recompute=policy)
        assert torch.equal(again[0], fused[0])
        assert again[1].keys() == fused[1].keys()
        assert all(torch.equal(again[1][name], gradient) for name, gradient in fused[1].items())


@needs_triton
@interpreted
def test_fused_with_a_time_for_each_frame(make_dit) -> None:
    model, t = make_dit(depth=1), torch.tensor([[0.0, 0.3], [0.9, 0.8]])
    assert_near(run(model, "fused", t, recompute="selective"), run(model, "reference", t))


@needs_triton
@interpreted
def test_a_caption_without_tokens_attends_evenly(make_dit) -> None:
    model = make_dit(depth=1)
    latents, context, t = torch.randn(1, 4, *GRID), torch.randn(1, 7, 10), torch.tensor([0.5])
    found = []
    for kernels in ("reference", "fused"):
        model.set_kernels(kernels)
        with torch.no_grad():
            found.append(model(latents, t, model.prepare(context, torch.zeros(1, 7, dtype=torch.bool))))
    # The reference adds -10000 to every score, which costs it three digits.
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3)


def test_fused_on_a_cpu_is_the_reference(make_dit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model, t = make_dit(depth=1), torch.tensor([0.3, 0.9])
    exact, fused = run(model, "reference", t), run(model, "fused", t)
    # Captions are put in another order, so sums over them round in another.
    assert_near(fused, exact)


@pytest.mark.parametrize(
    ("recompute", "size"),
    [
        ("none", 1),
        pytest.param("none", 2, marks=pytest.mark.slow),
        pytest.param("full", 1, marks=pytest.mark.slow),
    ],
)
def test_compiled_blocks_are_the_reference(make_dit, recompute: str, size: int) -> None:
    model, t = make_dit(), torch.tensor([0.3, 0.9])[:size]
    keys = list(model.state_dict())
    torch.compiler.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_near(run(model, "compiled", t, recompute=recompute), run(model, "reference", t))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1  # one for both blocks
    assert list(model.state_dict()) == keys


def test_another_implementations_rounding_is_not_fused(make_dit) -> None:
    with pytest.raises(ValueError, match="needs compat=none"):
        make_dit(compat="diffusers", kernels="fused")


@pytest.mark.parametrize("kernels", ["reference", pytest.param("compiled", marks=pytest.mark.slow)])
def test_keys_and_values_are_made_once_for_a_sampler_and_never_stand_in_for_gradients(
    make_dit, kernels: Kernels
) -> None:
    model = make_dit(depth=1, kernels=kernels)
    torch.compiler.reset()
    latents, context, t = torch.randn(1, 4, *GRID), torch.randn(1, 7, 10), torch.tensor([0.5])
    mask, calls = torch.ones(1, 7, dtype=torch.bool), []
    model.blocks[0].cross_attn.kv.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        state = model.prepare(context, mask)
        for _ in range(3):
            cached = model(latents, t, state)
    assert len(calls) == 1
    trained = model(latents, t, state)
    torch.testing.assert_close(trained, cached, rtol=1e-4, atol=1e-5)
    trained.sum().backward()
    assert model.blocks[0].cross_attn.kv.weight.grad.norm() > 0


@needs_triton
def test_a_plan_counts_what_fused_kernels_keep(make_dit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = {}
    for kernels in ("reference", "fused"):
        found[kernels] = step_memory(
            lambda kernels=kernels: make_dit(width=192, kernels=kernels),
            (4, 4, 16, 16),
            micro_batch=1,
            is_accumulating=False,
            recompute="none",
            optimiser="adamw",
            use_autocast=True,
        ).activations
    assert found["fused"] < 0.6 * found["reference"]


@needs_triton
@interpreted
def test_a_sampler_rounds_weights_once_until_they_change(make_dit, monkeypatch: pytest.MonkeyPatch) -> None:
    from sana_train.models.kernels import weights

    model = make_dit(depth=1, kernels="fused")
    latents, context, t = torch.randn(1, 4, *GRID), torch.randn(1, 7, 10), torch.tensor([0.5])

    def sampled() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model(latents, t, model.prepare(context, torch.ones(1, 7, dtype=torch.bool)))

    first, weight = sampled(), model.blocks[0].ffn.project.weight
    kept = weights.rounded(weight, torch.bfloat16)
    assert torch.equal(sampled(), first)
    assert weights.rounded(weight, torch.bfloat16) is kept
    with torch.no_grad():
        weight.mul_(2)
    assert not torch.equal(sampled(), first)
    assert torch.equal(weights.rounded(weight, torch.bfloat16), weight.bfloat16())
    run(model, "fused", t)  # with gradients nothing is kept beside the weights
    assert len(weights._kept) == 0
