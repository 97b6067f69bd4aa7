"""The block's parts as differentiable functions that keep little: projections with what is around them.

Every function computes its matrix products in the dtype it is given, whatever autocast says, and returns
weights' gradients in float32 where the weights are float32, straight from the product's accumulators.

Legend: B batch, N tokens, R = B N rows, G groups of rows that share a modulation, D width, M hidden width,
O outputs of a projection.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sana_train.models.kernels import cross_attention, gated_conv, linear_attention, modulation, temporal
from sana_train.models.kernels.portable import direct
from sana_train.models.layers.recompute import product

cross_attention_forward = direct(cross_attention.cross_attention_forward)
cross_attention_backward = direct(cross_attention.cross_attention_backward)
gated_conv_forward = direct(gated_conv.gated_conv_forward)
gated_conv_backward = direct(gated_conv.gated_conv_backward)
silu_conv_backward = direct(gated_conv.silu_conv_backward)
linear_attention_forward = direct(linear_attention.linear_attention_forward)
linear_attention_backward = direct(linear_attention.linear_attention_backward)
norm_forward, norm_backward = direct(modulation.norm_forward), direct(modulation.norm_backward)
neighbours, readers = direct(temporal.neighbours), direct(temporal.readers)
gate_forward, gate_backward = direct(modulation.gate_forward), direct(modulation.gate_backward)

NORM_EPS = 1e-6


def _weight_gradient(grad: Tensor, x: Tensor, like: torch.dtype) -> Tensor:
    """grad^T x of (R, O) and (R, D) in the dtype of the weight."""
    if grad.is_cuda and like == torch.float32 and grad.dtype != torch.float32:
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    return torch.mm(grad.t(), x).to(like)


def _rows(x: Tensor) -> Tensor:
    """(G, D) whose rows are contiguous, as slices of a modulation table are."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _over_groups(sums: Tensor) -> Tensor:
    """(G, D) -> (D,)."""
    return sums.sum(0) if len(sums) > 1 else sums[0]


def _keys(x: Tensor) -> Tensor:
    """(B, S, D) whose clips follow each other, as halves of a packed projection do."""
    return x if x.stride(-1) == 1 and x.stride(0) == x.shape[1] * x.stride(1) else x.contiguous()


class ModulatedLinear(Function):
    """Layer norm, modulation and a projection without bias; x is handed on for what comes past it.

    Keeps the normalised rows and computes the modulated ones again.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """x (R, D), shift and scale (G, D), weight (O, D) -> (R, O) in ``dtype``, x."""
        rounded, shift, scale = weight.to(dtype), _rows(shift), _rows(scale)
        modulated, normalised, rstd, _ = norm_forward(
            x.contiguous(), None, None, shift, scale, NORM_EPS, dtype, any(ctx.needs_input_grad)
        )
        ctx.save_for_backward(normalised, rstd, shift, scale, rounded)
        ctx.weight_dtype = weight.dtype
        return product(lambda: torch.mm(modulated, rounded.t())), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, past: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        normalised, rstd, shift, scale, weight = ctx.saved_tensors
        grad = grad.contiguous()
        dmodulated = torch.mm(grad, weight)
        dx, modulated, sums, _ = norm_backward(
            dmodulated, past.contiguous(), normalised, rstd, shift, scale, False
        )
        dweight = _weight_gradient(grad, modulated, ctx.weight_dtype)
        return dx, sums[0].to(shift.dtype), sums[1].to(scale.dtype), dweight, None


class LinearModulatedLinear(Function):
    """x + a weight^T + bias, and ``ModulatedLinear`` of that without reading the sum again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, a: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, scale: Tensor,
        next_weight: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x and a (R, D), weight (D, D), shift and scale (G, D), next_weight (O, D) -> (R, O), (R, D)."""
        rounded, next_rounded = weight.to(a.dtype), next_weight.to(a.dtype)
        shift, scale = _rows(shift), _rows(scale)
        update, is_kept = product(lambda: torch.mm(a, rounded.t())), any(ctx.needs_input_grad)
        modulated, normalised, rstd, total = norm_forward(
            x.contiguous(), update, bias.contiguous(), shift, scale, NORM_EPS, a.dtype, is_kept
        )
        ctx.save_for_backward(a, rounded, normalised, rstd, shift, scale, next_rounded)
        ctx.dtypes = weight.dtype, bias.dtype, next_weight.dtype
        return product(lambda: torch.mm(modulated, next_rounded.t())), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, past: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        a, weight, normalised, rstd, shift, scale, next_weight = ctx.saved_tensors
        weight_dtype, bias_dtype, next_dtype = ctx.dtypes
        grad = grad.contiguous()
        dx, modulated, sums, dupdate = norm_backward(
            torch.mm(grad, next_weight), past.contiguous(), normalised, rstd, shift, scale, True
        )
        return (
            dx,
            torch.mm(dupdate, weight),
            _weight_gradient(dupdate, a, weight_dtype),
            _over_groups(sums[2]).to(bias_dtype),
            sums[0].to(shift.dtype),
            sums[1].to(scale.dtype),
            _weight_gradient(grad, modulated, next_dtype),
        )


class LinearAttentionFunction(Function):
    """Keeps the packed projections, a number per token and a matrix per head."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
        num_heads: int, qk_eps: float, eps: float,
    ) -> Tensor:  # fmt: skip
        """qkv (B, N, 3 D) -> (B, N, D)."""
        qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
        q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
        out, rstd, summary, total = linear_attention_forward(
            qkv, q_weight, k_weight, cos, sin, num_heads, qk_eps, eps
        )
        ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin, rstd, summary, total)
        ctx.num_heads, ctx.eps = num_heads, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors  # read once: recomputed blocks give them once
        q_weight, k_weight = saved[1:3]
        dqkv, sums = linear_attention_backward(grad.contiguous(), *saved, ctx.num_heads, ctx.eps)
        dq_weight, dk_weight = sums[0].chunk(2)
        weights = dq_weight.to(q_weight.dtype), dk_weight.to(k_weight.dtype)
        return dqkv, *weights, None, None, None, None, None


class GatedLinear(Function):
    """x + gate * (a weight^T + bias), and if asked for the same once more in the dtype of ``a``."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, a: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, use_copy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """x (R, D), a (R, D), weight (D, D), bias (D,), gate (G, D) -> (R, D), (R, D) or None."""
        rounded, gate = weight.to(a.dtype), _rows(gate)
        update, bias = product(lambda: torch.mm(a, rounded.t())), bias.contiguous()
        out, copy = gate_forward(x.contiguous(), update, bias, gate, a.dtype if use_copy else None)
        ctx.save_for_backward(a, update, rounded, bias, gate)
        ctx.weight_dtype = weight.dtype
        return out, copy if use_copy else None

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, copy_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        a, update, weight, bias, gate = ctx.saved_tensors
        grad = grad.contiguous()
        copy_grad = None if copy_grad is None else copy_grad.contiguous()
        dx, dupdate, sums = gate_backward(grad, copy_grad, update, bias, gate, a.dtype)
        return (
            grad if copy_grad is None else dx,
            torch.mm(dupdate, weight),
            _weight_gradient(dupdate, a, ctx.weight_dtype),
            _over_groups(sums[1]).to(bias.dtype),
            sums[0].to(gate.dtype),
            None,
        )


class CrossAttentionFunction(Function):
    """The projection of queries, their norm, and attention; keeps projected queries and the result."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, q_weight: Tensor, key: Tensor, value: Tensor,
        lengths: Tensor, num_heads: int, qk_eps: float,
    ) -> Tensor:  # fmt: skip
        """x (B, N, D), weight (D, D), key and value (B, S, D) -> (B, N, D)."""
        rounded, key, value = weight.to(x.dtype), _keys(key), _keys(value)
        q_weight = q_weight.contiguous()
        query = product(lambda: torch.addmm(bias.to(x.dtype), x.flatten(0, 1), rounded.t())).view(x.shape)
        out, rstd, lse = cross_attention_forward(query, q_weight, key, value, lengths, num_heads, qk_eps)
        ctx.save_for_backward(x, rounded, query, q_weight, rstd, key, value, lengths, lse, out)
        ctx.num_heads, ctx.weight_dtype, ctx.bias_dtype = num_heads, weight.dtype, bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, query, q_weight, rstd, key, value, lengths, lse, out = ctx.saved_tensors
        dquery, sums, dcaption = cross_attention_backward(
            grad.contiguous(), out, query, q_weight, rstd, key, value, lengths, lse, ctx.num_heads
        )
        flat = dquery.flatten(0, 1)
        return (
            torch.mm(flat, weight).view(x.shape),
            _weight_gradient(flat, x.flatten(0, 1), ctx.weight_dtype),
            sums[1].to(ctx.bias_dtype),
            sums[0].to(q_weight.dtype),
            dcaption[0],
            dcaption[1],
            None,
            None,
            None,
        )


class GatedConvLinear(Function):
    """SiLU, depthwise convolution, gate, and the projection behind; keeps the expanded rows only."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        in_bias: Tensor,
        taps: Tensor,
        bias: Tensor,
        weight: Tensor,
        height: int,
        width: int,
    ) -> Tensor:
        """x (R, 2 M) without its bias ``in_bias``, taps (2 M, 1, 3, 3), weight (D, M) -> (R, D)."""
        x, taps, rounded = x.contiguous(), taps.contiguous(), weight.to(x.dtype)
        in_bias, bias = in_bias.contiguous(), bias.contiguous()
        ctx.save_for_backward(x, in_bias, taps, bias, rounded)
        ctx.sizes, ctx.weight_dtype = (height, width), weight.dtype
        return product(
            lambda: torch.mm(gated_conv_forward(x, in_bias, taps, bias, height, width), rounded.t())
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, in_bias, taps, bias, weight = ctx.saved_tensors
        dz, gated = gated_conv_backward(torch.mm(grad, weight), x, in_bias, taps, bias, *ctx.sizes)
        dweight = _weight_gradient(grad, gated, ctx.weight_dtype)
        del gated
        dx, sums = silu_conv_backward(dz, x, in_bias, taps, *ctx.sizes)
        dtaps = sums[:9].t().reshape(taps.shape).to(taps.dtype)
        return dx, sums[10].to(in_bias.dtype), dtaps, sums[9].to(bias.dtype), dweight, None, None


class GatedTemporal(Function):
    """x + gate * (u + temporal(u)): a convolution of three frames as one product; keeps u and the update."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, u: Tensor, weight: Tensor, gate: Tensor, is_read: bool
    ) -> Tensor:
        """The result if it ``is_read``, else only what the backward pass needs, and a tensor without numbers.

        x (B T H W, D), u (B, T, H W, D), weight (D, 3 D) of frames before, at and after, gate (G, D).
        """
        rounded, gate = weight.to(u.dtype), _rows(gate)
        u = u.contiguous()
        update = product(lambda: torch.addmm(u.flatten(0, 2), neighbours(u), rounded.t()))
        ctx.save_for_backward(u, update, rounded, gate)
        ctx.weight_dtype = weight.dtype
        return (
            gate_forward(x.contiguous(), update, None, gate, None)[0]
            if is_read
            else x.new_empty(()).expand_as(x)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        u, update, weight, gate = ctx.saved_tensors
        grad = grad.contiguous()
        _, dupdate, sums = gate_backward(grad, None, update, None, gate, u.dtype)
        width = u.shape[-1]
        around = readers(dupdate.view(u.shape))
        du = dupdate.addmm_(around, weight.reshape(3 * width, width))
        dweight = _weight_gradient(around, u.flatten(0, 2), ctx.weight_dtype).view(width, 3 * width)
        return grad, du.view(u.shape), dweight, sums[0].to(gate.dtype), None
