"""Each fused function against plain PyTorch in float64: values and gradients, at odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sana_train.models.layers.rope import Rotation, grid_positions, rotate, rotation

triton = pytest.importorskip("triton", reason="kernels need Triton: pip install triton")
fused = pytest.importorskip("sana_train.models.kernels.functions")
linear_attention = pytest.importorskip("sana_train.models.kernels.linear_attention")
modulation = pytest.importorskip("sana_train.models.kernels.modulation")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Sigmoids of the convolution come from an instruction with 11 bits on a GPU; all else is float32.
TOLERANCE = 2e-6 if DEVICE.type == "cpu" else 2e-3
WIDTH, HEADS, HEAD_DIM = 36, 3, 12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


def strided(x: Tensor) -> Tensor:
    """The same numbers, every second of memory."""
    return torch.stack([x, torch.full_like(x, float("nan"))], dim=-1)[..., 0]


def check(function: Callable[..., Any], reference: Callable[..., Any], inputs: list[Tensor]) -> None:
    """Values and gradients of all inputs, also with inputs that are not contiguous."""
    exact_inputs = [x.double().requires_grad_() for x in inputs]
    exact = reference(*exact_inputs)
    exact = exact if isinstance(exact, tuple) else (exact,)
    grads = [normal(*each.shape, seed=7) for each in exact]
    wanted = torch.autograd.grad(exact, exact_inputs, [grad.double() for grad in grads])
    for lay_out in (torch.clone, strided):
        given = [lay_out(x).requires_grad_() for x in inputs]
        out = function(*given)
        out = tuple(each for each in (out if isinstance(out, tuple) else (out,)) if each is not None)
        found = torch.autograd.grad(out, given, [lay_out(grad) for grad in grads])
        for mine, theirs in zip((*out, *found), (*exact, *wanted), strict=True):
            assert mine.shape == theirs.shape
            assert float((mine - theirs).detach().norm() / theirs.detach().norm()) < TOLERANCE


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    normalised = F.layer_norm(x, x.shape[-1:], eps=1e-6).unflatten(0, (shift.shape[0], -1))
    return (normalised * (1 + scale[:, None]) + shift[:, None]).flatten(0, 1)


@pytest.mark.parametrize("groups", [1, 3])
def test_modulated_linear(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modulation, "_PROGRAMS", 6)  # so that each has several rows, the last fewer

    def reference(x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return modulated(x, shift, scale) @ weight.t(), x

    inputs = [normal(51, 20), normal(groups, 20, seed=1), normal(groups, 20, seed=2), normal(13, 20)]
    check(lambda *x: fused.ModulatedLinear.apply(*x, torch.float32), reference, inputs)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_residual_and_the_norm_behind_it(groups: int) -> None:
    def reference(
        x: Tensor, a: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, scale: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = x + a @ weight.t() + bias
        return modulated(total, shift, scale) @ after.t(), total

    inputs = [normal(51, 20), normal(51, 20, seed=1), normal(20, 20), normal(20), normal(groups, 20, seed=1),
        normal(groups, 20, seed=2), normal(13, 20)]  # fmt: skip
    check(fused.LinearModulatedLinear.apply, reference, inputs)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("use_copy", [False, True])
def test_gated_linear(groups: int, use_copy: bool) -> None:
    def reference(x: Tensor, a: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Any:
        update = a @ weight.t() + bias
        update = (update.unflatten(0, (groups, -1)) * gate[:, None]).flatten(0, 1)
        return (x + update, x + update) if use_copy else x + update

    def function(*given: Tensor) -> Any:
        return fused.GatedLinear.apply(*given, use_copy)

    # More rows and columns than a tile has, and no multiple of either.
    inputs = [normal(201, 70), normal(201, 70, seed=1), normal(70, 70), normal(70), normal(groups, 70)]
    check(function, reference, inputs)


@pytest.mark.parametrize(
    ("batch", "grid", "programs"), [(1, (1, 1, 3), 264), (2, (3, 5, 5), 264), (1, (5, 7, 6), 6)]
)
def test_linear_attention(
    batch: int, grid: tuple[int, int, int], programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        linear_attention, "_PROGRAMS", programs
    )  # few: each has several tiles, the last fewer
    rope = rotation(grid_positions(grid, DEVICE), HEAD_DIM, torch.float32)

    def reference(qkv: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
        query, key, value = qkv.chunk(3, dim=-1)
        query, key = (
            F.rms_norm(x, (WIDTH,), weight, 1e-5).relu() for x, weight in ((query, q_weight), (key, k_weight))
        )
        query, key, value = (x.unflatten(-1, (HEADS, HEAD_DIM)) for x in (query, key, value))
        exact = Rotation(rope.cos.double(), rope.sin.double())
        weights = torch.einsum("bnae,bmae->banm", rotate(query, exact), rotate(key, exact))
        total = torch.einsum("bnae,bmae->banm", query, key).sum(-1) + 1e-8
        return (torch.einsum("banm,bmae->bnae", weights, value) / total.mT.unsqueeze(-1)).flatten(2)

    def function(qkv: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
        cos, sin = rope.cos.squeeze(1), rope.sin.squeeze(1)
        return fused.LinearAttentionFunction.apply(qkv, q_weight, k_weight, cos, sin, HEADS, 1e-5, 1e-8)

    num_tokens = grid[0] * grid[1] * grid[2]
    check(function, reference, [normal(batch, num_tokens, 3 * WIDTH), normal(WIDTH), normal(WIDTH, seed=1)])


@pytest.mark.parametrize("lengths", [[70], [1, 70, 13]])
def test_cross_attention_to_captions_of_their_own_lengths(lengths: list[int]) -> None:
    batch, num_keys = len(lengths), 70
    each = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)

    def reference(x: Tensor, weight: Tensor, bias: Tensor, q_weight: Tensor, kv: Tensor) -> Tensor:
        query = F.rms_norm(x @ weight.t() + bias, (WIDTH,), q_weight, 1e-6)
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, *kv.chunk(2, dim=-1))
        )
        scores = query @ key.mT / HEAD_DIM**0.5
        behind = (torch.arange(num_keys, device=DEVICE) >= each[:, None])[:, None, None]
        weights = scores.masked_fill(behind, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)

    def function(x: Tensor, weight: Tensor, bias: Tensor, q_weight: Tensor, kv: Tensor) -> Tensor:
        key, value = kv.chunk(2, dim=-1)
        return fused.CrossAttentionFunction.apply(x, weight, bias, q_weight, key, value, each, HEADS, 1e-6)

    inputs = [normal(batch, 130, WIDTH), normal(WIDTH, WIDTH) / 6, normal(WIDTH), normal(WIDTH, seed=1),
        normal(batch, num_keys, 2 * WIDTH)]  # fmt: skip
    check(function, reference, inputs)


@pytest.mark.parametrize(("height", "width"), [(3, 4), (9, 1)])
def test_gated_convolution(height: int, width: int) -> None:
    frames, hidden = 2, 9

    def reference(x: Tensor, in_bias: Tensor, taps: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        x = F.silu(x + in_bias).view(frames, height, width, -1).permute(0, 3, 1, 2)
        z = F.conv2d(x, taps, bias, padding=1, groups=2 * hidden).permute(0, 2, 3, 1).flatten(0, 2)
        return z[:, :hidden] * F.silu(z[:, hidden:]) @ weight.t()

    inputs = [normal(frames * height * width, 2 * hidden), normal(2 * hidden), normal(2 * hidden, 1, 3, 3),
        normal(2 * hidden, seed=1), normal(5, hidden)]  # fmt: skip
    check(lambda *x: fused.GatedConvLinear.apply(*x, height, width), reference, inputs)


@pytest.mark.parametrize(("frames", "groups"), [(1, 1), (4, 4)])
def test_temporal_convolution(frames: int, groups: int) -> None:
    def reference(x: Tensor, u: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        taps = weight.unflatten(1, (3, -1)).permute(0, 2, 1)
        rows = u.permute(0, 2, 3, 1).flatten(0, 1)  # (B P, D, T)
        mixed = F.conv1d(rows, taps, padding=1).unflatten(0, (u.shape[0], -1)).permute(0, 3, 1, 2)
        update = (u + mixed).flatten(0, 2).unflatten(0, (groups, -1))
        return x + (update * gate[:, None]).flatten(0, 1)

    inputs = [normal(2 * frames * 7, 20), normal(2, frames, 7, 20), normal(20, 60), normal(groups, 20)]
    check(lambda *given: fused.GatedTemporal.apply(*given, True), reference, inputs)
