"""Linear self-attention from packed projections: RMS norm, ReLU, rotation and both sums, without copies.

Queries, keys and values are read where the projection wrote them. What the backward pass needs beside them is
a number per token and a matrix per head: everything else is computed again. Matrix products take operands in
the dtype of the projections and add up in float32; sums over tokens are added in a fixed order.

Gradients of queries and keys take their matrix as two summands in that dtype. All tokens share it, so what a
single rounding takes away adds up over them in the gradients of both norms' weights, in which what is true
mostly cancels: the result does not change with the length of a token's query.

Legend: B batch, N tokens, R = B N rows, A heads, E head width, D = A E; tokens of one clip are split among
programs, P of them to a head.
"""


# ruff: noqa: ANN001, ANN202, ARG001
# To a type checker Triton's language is no Python.
# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sana_train.models.kernels.portable import dot
from sana_train.models.kernels.rms import rms_backward, rms_statistics

_TOKENS = 64  # of one step
_STAGES = 3  # of loads under way
_PROGRAMS = 264  # two for each multiprocessor of an H100, where there are tokens enough


@triton.jit  # whose arguments must not be annotated
def _turn(x, cos, sin, TOKENS: tl.constexpr, HEAD: tl.constexpr):
    """Each pair (2i, 2i + 1) of (tokens, E) by its angle."""
    even, odd = tl.split(tl.reshape(x, [TOKENS, HEAD // 2, 2]))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), [TOKENS, HEAD])


@triton.jit
def _features(
    x_pointer, weight_pointer, rstd_pointer, cos_pointer, sin_pointer, row, token, is_token, stride, head,
    head_dim, TOKENS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """(ReLU of normalised, rotated, cos, sin, reciprocal RMS) of one head's columns."""
    column = tl.arange(0, HEAD)
    inside = is_token[:, None] & (column < head_dim)[None, :]
    x = tl.load(x_pointer + row[:, None] * stride + head * head_dim + column[None, :], mask=inside, other=0.0)
    weight = tl.load(weight_pointer + head * head_dim + column, mask=column < head_dim, other=0.0)
    rstd = tl.load(rstd_pointer + row, mask=is_token, other=1.0)
    positive = tl.maximum(x.to(tl.float32) * rstd[:, None] * weight.to(tl.float32)[None, :], 0.0)
    pair = tl.arange(0, HEAD // 2)
    known = is_token[:, None] & (pair < head_dim // 2)[None, :]
    angle = token[:, None] * (head_dim // 2) + pair[None, :]
    cos = tl.load(cos_pointer + angle, mask=known, other=0.0).to(tl.float32)
    sin = tl.load(sin_pointer + angle, mask=known, other=0.0).to(tl.float32)
    return positive, _turn(positive, cos, sin, TOKENS, HEAD), cos, sin, rstd


@triton.jit
def _square(pointer, slot, HEAD: tl.constexpr):
    """(E, E) of one head, stored padded with zeros."""
    row, column = tl.arange(0, HEAD)[:, None], tl.arange(0, HEAD)[None, :]
    return tl.load(pointer + slot * HEAD * HEAD + row * HEAD + column)


@triton.jit
def _two_summands(square, like):
    """A matrix in the dtype of ``like``, and what that rounding left of it."""
    rounded = square.to(like)
    return rounded, (square - rounded.to(tl.float32)).to(like)


@triton.jit
def _store_partial(matrix_pointer, vector_pointer, matrix, vector, slot, HEAD: tl.constexpr):
    row, column = tl.arange(0, HEAD)[:, None], tl.arange(0, HEAD)[None, :]
    tl.store(matrix_pointer + slot * HEAD * HEAD + row * HEAD + column, matrix)
    tl.store(vector_pointer + slot * HEAD + tl.arange(0, HEAD), vector)


@triton.jit
def _linear_summarise(
    key_pointer, value_pointer, weight_pointer, rstd_pointer, cos_pointer, sin_pointer,
    summary_pointer, total_pointer, stride, num_tokens, num_heads, head_dim, tokens_per_program,
    TOKENS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Partial sums over tokens of v (R k')^T and of k'."""
    part, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    clip, head = slot // num_heads, slot % num_heads
    column = tl.arange(0, HEAD)
    summary = tl.zeros([HEAD, HEAD], tl.float32)
    total = tl.zeros([HEAD], tl.float32)
    start = part * tokens_per_program
    end = tl.minimum(start + tokens_per_program, num_tokens)
    for first in range(start, end, TOKENS):
        token = first + tl.arange(0, TOKENS)
        is_token = token < end
        row = clip * num_tokens + token
        positive, turned, _, _, _ = _features(
            key_pointer, weight_pointer, rstd_pointer, cos_pointer, sin_pointer, row, token, is_token, stride,
            head, head_dim, TOKENS, HEAD,
        )  # fmt: skip
        inside = is_token[:, None] & (column < head_dim)[None, :]
        place = value_pointer + row[:, None] * stride + head * head_dim + column[None, :]
        value = tl.load(place, mask=inside, other=0.0)
        # The operand that is turned round is the one that comes from memory as it is.
        summary += dot(tl.trans(value), turned.to(value.dtype))
        total += tl.sum(positive, axis=0)
    _store_partial(summary_pointer, total_pointer, summary, total, part * tl.num_programs(1) + slot, HEAD)


@triton.jit
def _linear_mix(
    query_pointer, weight_pointer, rstd_pointer, cos_pointer, sin_pointer, summary_pointer, total_pointer,
    out_pointer, stride, num_tokens, num_heads, head_dim, tokens_per_program, eps,
    TOKENS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """The summary times R q', over q' times the total."""
    slot = tl.program_id(1).to(tl.int64)
    clip, head = slot // num_heads, slot % num_heads
    column = tl.arange(0, HEAD)
    total = tl.load(total_pointer + slot * HEAD + column)
    summary = tl.trans(_square(summary_pointer, slot, HEAD).to(query_pointer.dtype.element_ty))
    start = tl.program_id(0) * tokens_per_program
    end = tl.minimum(start + tokens_per_program, num_tokens)
    for first in range(start, end, TOKENS):
        token = first + tl.arange(0, TOKENS)
        is_token = token < end
        row = clip * num_tokens + token
        positive, turned, _, _, _ = _features(
            query_pointer, weight_pointer, rstd_pointer, cos_pointer, sin_pointer, row, token, is_token,
            stride, head, head_dim, TOKENS, HEAD,
        )  # fmt: skip
        mixed = dot(turned.to(summary.dtype), summary)
        mixed /= (tl.sum(positive * total[None, :], axis=1) + eps)[:, None]
        inside = is_token[:, None] & (column < head_dim)[None, :]
        place = out_pointer + row[:, None] * (num_heads * head_dim) + head * head_dim + column[None, :]
        tl.store(place, mixed.to(out_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _store_gradient(
    grad, positive, rstd, grad_pointer, along_pointer, row, is_token, stride, head, head_dim, num_rows,
    HEAD: tl.constexpr,
):  # fmt: skip
    """The gradient of a normalised row, and its head's share of what the norm's backward pass sums.

    That is of gradient times weight times x, where x times its norm's factor and weight is ``positive``.
    """
    column = tl.arange(0, HEAD)
    grad = tl.where(positive > 0.0, grad, 0.0).to(grad_pointer.dtype.element_ty)
    inside = is_token[:, None] & (column < head_dim)[None, :]
    tl.store(grad_pointer + row[:, None] * stride + head * head_dim + column[None, :], grad, mask=inside)
    along = tl.sum(grad.to(tl.float32) * positive, axis=1) / rstd
    tl.store(along_pointer + head * num_rows + row, along, mask=is_token)


@triton.jit
def _linear_mix_backward(
    grad_pointer, query_pointer, weight_pointer, rstd_pointer, cos_pointer, sin_pointer,
    summary_pointer, total_pointer, dquery_pointer, along_pointer, dsummary_pointer, dtotal_pointer,
    stride, num_tokens, num_heads, head_dim, num_rows, tokens_per_program, eps,
    TOKENS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of normalised queries, and partial sums over tokens of those of summary and total.

    With s = 1 / (q' total) and g = s R^T (summary^T grad): dq' = g - s (q' g) total, for a rotation changes
    no inner product; so the result itself is not needed.
    """
    part, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    clip, head = slot // num_heads, slot % num_heads
    column = tl.arange(0, HEAD)
    total = tl.load(total_pointer + slot * HEAD + column)
    summary, rest = _two_summands(_square(summary_pointer, slot, HEAD), query_pointer.dtype.element_ty)
    dsummary = tl.zeros([HEAD, HEAD], tl.float32)
    dtotal = tl.zeros([HEAD], tl.float32)
    start = part * tokens_per_program
    end = tl.minimum(start + tokens_per_program, num_tokens)
    for first in range(start, end, TOKENS):
        token = first + tl.arange(0, TOKENS)
        is_token = token < end
        row = clip * num_tokens + token
        positive, turned, cos, sin, rstd = _features(
            query_pointer, weight_pointer, rstd_pointer, cos_pointer, sin_pointer, row, token, is_token,
            stride, head, head_dim, TOKENS, HEAD,
        )  # fmt: skip
        inside = is_token[:, None] & (column < head_dim)[None, :]
        place = grad_pointer + row[:, None] * (num_heads * head_dim) + head * head_dim + column[None, :]
        grad = tl.load(place, mask=inside, other=0.0)
        scale = 1.0 / (tl.sum(positive * total[None, :], axis=1) + eps)
        dsummary += dot(tl.trans(grad), (turned * scale[:, None]).to(grad.dtype))
        # Apart until they are scaled: a product that goes on from another one's sums is laid out anew.
        dturned = dot(grad, summary) * scale[:, None] + dot(grad, rest) * scale[:, None]
        dpositive = _turn(dturned, cos, -sin, TOKENS, HEAD)
        dscale = -tl.sum(positive * dpositive, axis=1) * scale
        dtotal += tl.sum(positive * dscale[:, None], axis=0)
        _store_gradient(
            dpositive + dscale[:, None] * total[None, :], positive, rstd, dquery_pointer, along_pointer, row,
            is_token, stride, head, head_dim, num_rows, HEAD,
        )  # fmt: skip
    _store_partial(dsummary_pointer, dtotal_pointer, dsummary, dtotal, part * tl.num_programs(1) + slot, HEAD)


@triton.jit
def _linear_summarise_backward(
    key_pointer, value_pointer, weight_pointer, rstd_pointer, cos_pointer, sin_pointer,
    dsummary_pointer, dtotal_pointer, dkey_pointer, dvalue_pointer, along_pointer,
    stride, num_tokens, num_heads, head_dim, num_rows, tokens_per_program,
    TOKENS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of normalised keys and of values."""
    slot = tl.program_id(1).to(tl.int64)
    clip, head = slot // num_heads, slot % num_heads
    column = tl.arange(0, HEAD)
    dtotal = tl.load(dtotal_pointer + slot * HEAD + column)
    dsummary, rest = _two_summands(_square(dsummary_pointer, slot, HEAD), key_pointer.dtype.element_ty)
    start = tl.program_id(0) * tokens_per_program
    end = tl.minimum(start + tokens_per_program, num_tokens)
    for first in range(start, end, TOKENS):
        token = first + tl.arange(0, TOKENS)
        is_token = token < end
        row = clip * num_tokens + token
        positive, turned, cos, sin, rstd = _features(
            key_pointer, weight_pointer, rstd_pointer, cos_pointer, sin_pointer, row, token, is_token, stride,
            head, head_dim, TOKENS, HEAD,
        )  # fmt: skip
        inside = is_token[:, None] & (column < head_dim)[None, :]
        place = row[:, None] * stride + head * head_dim + column[None, :]
        value = tl.load(value_pointer + place, mask=inside, other=0.0)
        dvalue = dot(turned.to(dsummary.dtype), tl.trans(dsummary))
        tl.store(dvalue_pointer + place, dvalue.to(dvalue_pointer.dtype.element_ty), mask=inside)
        # Apart until they are masked, as in the backward pass of queries.
        dturned = tl.where(inside, dot(value, dsummary), 0.0) + tl.where(inside, dot(value, rest), 0.0)
        dpositive = _turn(dturned, cos, -sin, TOKENS, HEAD) + dtotal[None, :]
        _store_gradient(
            dpositive, positive, rstd, dkey_pointer, along_pointer, row, is_token, stride, head, head_dim,
            num_rows, HEAD,
        )  # fmt: skip


def _padded(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))  # as a matrix product needs


def _split(num_slots: int, num_tokens: int) -> tuple[int, int]:
    """(programs to a head, tokens of each, a whole number of steps)."""
    steps = triton.cdiv(num_tokens, _TOKENS)
    parts = max(1, min(steps, _PROGRAMS // num_slots))
    tokens = triton.cdiv(steps, parts) * _TOKENS
    return triton.cdiv(num_tokens, tokens), tokens


@torch.library.custom_op("sana_train::linear_attention_forward", mutates_args=())
def linear_attention_forward(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, num_heads: int,
    qk_eps: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Linear attention with un-rotated denominator.

    Args:
        qkv: (B, N, 3 D) contiguous: queries, keys, values.
        q_weight: (D,) of the queries' RMS norm.
        k_weight: (D,) of the keys' RMS norm.
        cos: (N, E / 2) contiguous float32, of the rotation.
        sin: as ``cos``.
        num_heads: A.
        qk_eps: of both norms.
        eps: added to the denominator.

    Returns:
        (B, N, D) in the dtype of ``qkv``, and for the backward pass: (2, R) float32 reciprocal RMS of
        queries and keys; with E padded, (B A, E, E) summary, values by keys, and (B A, E) total, float32.
    """
    batch, num_tokens, width = qkv.shape
    width //= 3
    head_dim, slots = width // num_heads, batch * num_heads
    query, key, value = qkv.view(-1, 3 * width).chunk(3, dim=-1)
    rstd = rms_statistics(qkv.view(-1, 3 * width), width, 2, qk_eps)
    parts, tokens = _split(slots, num_tokens)
    head = _padded(head_dim)
    partial = qkv.new_empty((parts, slots, head, head), dtype=torch.float32)
    totals = qkv.new_empty((parts, slots, head), dtype=torch.float32)
    _linear_summarise[(parts, slots)](
        key, value, k_weight, rstd[1], cos, sin, partial, totals, 3 * width, num_tokens, num_heads, head_dim,
        tokens, TOKENS=_TOKENS, HEAD=head, num_warps=8, num_stages=_STAGES,
    )  # fmt: skip
    summary, total = partial.sum(0), totals.sum(0)
    out = qkv.new_empty((batch, num_tokens, width))
    _linear_mix[(parts, slots)](
        query, q_weight, rstd[0], cos, sin, summary, total, out, 3 * width, num_tokens, num_heads, head_dim,
        tokens, eps, TOKENS=_TOKENS, HEAD=head, num_warps=8, num_stages=_STAGES,
    )  # fmt: skip
    return out, rstd, summary, total


@linear_attention_forward.register_fake
def _(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, num_heads: int,
    qk_eps: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    batch, num_tokens, width = qkv.shape
    width //= 3
    slots, head = batch * num_heads, _padded(width // num_heads)
    return (
        qkv.new_empty((batch, num_tokens, width)),
        qkv.new_empty((2, batch * num_tokens), dtype=torch.float32),
        qkv.new_empty((slots, head, head), dtype=torch.float32),
        qkv.new_empty((slots, head), dtype=torch.float32),
    )


@torch.library.custom_op("sana_train::linear_attention_backward", mutates_args=())
def linear_attention_backward(
    grad: Tensor, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    rstd: Tensor, summary: Tensor, total: Tensor, num_heads: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of ``linear_attention_forward``: of qkv; (2, 2 D) float32, the first row of the weights."""
    batch, num_tokens, width = grad.shape
    head_dim, slots, rows = width // num_heads, batch * num_heads, batch * num_tokens
    flat = qkv.view(-1, 3 * width)
    query, key, value = flat.chunk(3, dim=-1)
    dqkv = torch.empty_like(flat)
    dquery, dkey, dvalue = dqkv.chunk(3, dim=-1)
    parts, tokens = _split(slots, num_tokens)
    head = _padded(head_dim)
    partial = grad.new_empty((parts, slots, head, head), dtype=torch.float32)
    totals = grad.new_empty((parts, slots, head), dtype=torch.float32)
    along = grad.new_empty((2, num_heads, rows), dtype=torch.float32)
    sizes = (3 * width, num_tokens, num_heads, head_dim, rows, tokens)
    _linear_mix_backward[(parts, slots)](
        grad, query, q_weight, rstd[0], cos, sin, summary, total, dquery, along[0], partial, totals, *sizes,
        eps, TOKENS=_TOKENS, HEAD=head, num_warps=8, num_stages=_STAGES,
    )  # fmt: skip
    dsummary, dtotal = partial.sum(0), totals.sum(0)
    _linear_summarise_backward[(parts, slots)](
        key, value, k_weight, rstd[1], cos, sin, dsummary, dtotal, dkey, dvalue, along[1], *sizes,
        TOKENS=_TOKENS, HEAD=head, num_warps=8, num_stages=_STAGES,
    )  # fmt: skip
    weights = torch.cat([q_weight, k_weight])
    return dqkv.view_as(qkv), rms_backward(dqkv, flat, weights, rstd, along.sum(1), width)


@linear_attention_backward.register_fake
def _(
    grad: Tensor, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    rstd: Tensor, summary: Tensor, total: Tensor, num_heads: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(qkv), grad.new_empty((2, 2 * grad.shape[-1]), dtype=torch.float32)
