"""Softmax attention to captions of different lengths, with the queries' RMS norm inside.

Keys behind a caption's end are not read: lengths lie on the device, and nothing of size N x S is ever stored.
Gradients of keys and values are summed over queries by several programs per caption tile, in a fixed order.

Legend: B batch, N video tokens, R = B N rows, S caption tokens, A heads, E head width, D = A E.
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

_QUERIES, _KEYS = 128, 64  # of a step
_BACKWARD_QUERIES = 64
_PROGRAMS = 528  # four for each multiprocessor of an H100, where there are queries enough


@triton.jit  # whose arguments must not be annotated
def _tile(pointer, row, is_row, stride, head, head_dim, HEAD: tl.constexpr):
    column = tl.arange(0, HEAD)
    place = pointer + row[:, None] * stride + head * head_dim + column[None, :]
    return tl.load(place, mask=is_row[:, None] & (column < head_dim)[None, :], other=0.0)


@triton.jit
def _normalised(
    pointer, weight_pointer, rstd_pointer, row, is_row, stride, head, head_dim, HEAD: tl.constexpr
):
    """(raw float32, normalised in the dtype of the projection, weight)."""
    raw = _tile(pointer, row, is_row, stride, head, head_dim, HEAD).to(tl.float32)
    column = tl.arange(0, HEAD)
    weight = tl.load(weight_pointer + head * head_dim + column, mask=column < head_dim, other=0.0)
    weight = weight.to(tl.float32)
    rstd = tl.load(rstd_pointer + row, mask=is_row, other=0.0)
    return raw, (raw * rstd[:, None] * weight[None, :]).to(pointer.dtype.element_ty), weight


@triton.jit
def _cross_forward(
    query_pointer, weight_pointer, rstd_pointer, key_pointer, value_pointer, length_pointer,
    out_pointer, lse_pointer, key_stride, value_stride, num_tokens, num_keys, num_heads, head_dim, num_rows,
    scale, QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(1).to(tl.int64)
    clip, head = slot // num_heads, slot % num_heads
    token = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    is_token = token < num_tokens
    row = clip * num_tokens + token
    width = num_heads * head_dim
    _, query, _ = _normalised(
        query_pointer, weight_pointer, rstd_pointer, row, is_token, width, head, head_dim, HEAD
    )
    length = tl.load(length_pointer + clip)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, HEAD], tl.float32)
    for first in range(0, length, KEYS):
        place = first + tl.arange(0, KEYS)
        is_key = place < length
        key = _tile(key_pointer, clip * num_keys + place, is_key, key_stride, head, head_dim, HEAD)
        value = _tile(value_pointer, clip * num_keys + place, is_key, value_stride, head, head_dim, HEAD)
        score = dot(query, tl.trans(key)) * scale
        score = tl.where(is_key[None, :], score, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, axis=1))
        weight = tl.exp(score - new_largest[:, None])
        shrink = tl.exp(largest - new_largest)
        total = total * shrink + tl.sum(weight, axis=1)
        mixed = mixed * shrink[:, None] + dot(weight.to(value.dtype), value)
        largest = new_largest
    mixed /= total[:, None]
    column = tl.arange(0, HEAD)
    tl.store(
        out_pointer + row[:, None] * width + head * head_dim + column[None, :],
        mixed.to(out_pointer.dtype.element_ty),
        mask=is_token[:, None] & (column < head_dim)[None, :],
    )
    tl.store(lse_pointer + head * num_rows + row, largest + tl.log(total), mask=is_token)


@triton.jit
def _cross_query_backward(
    grad_pointer, out_pointer, query_pointer, weight_pointer, rstd_pointer, key_pointer, value_pointer,
    length_pointer, lse_pointer, dquery_pointer, delta_pointer, along_pointer,
    key_stride, value_stride, num_tokens, num_keys, num_heads, head_dim, num_rows, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(1).to(tl.int64)
    clip, head = slot // num_heads, slot % num_heads
    token = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    is_token = token < num_tokens
    row = clip * num_tokens + token
    width = num_heads * head_dim
    raw, query, weight = _normalised(
        query_pointer, weight_pointer, rstd_pointer, row, is_token, width, head, head_dim, HEAD
    )
    grad = _tile(grad_pointer, row, is_token, width, head, head_dim, HEAD)
    out = _tile(out_pointer, row, is_token, width, head, head_dim, HEAD)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(delta_pointer + head * num_rows + row, delta, mask=is_token)
    lse = tl.load(lse_pointer + head * num_rows + row, mask=is_token, other=0.0)
    length = tl.load(length_pointer + clip)
    dquery = tl.zeros([QUERIES, HEAD], tl.float32)
    for first in range(0, length, KEYS):
        place = first + tl.arange(0, KEYS)
        is_key = place < length
        key = _tile(key_pointer, clip * num_keys + place, is_key, key_stride, head, head_dim, HEAD)
        value = _tile(value_pointer, clip * num_keys + place, is_key, value_stride, head, head_dim, HEAD)
        score = dot(query, tl.trans(key)) * scale
        share = tl.where(is_key[None, :], tl.exp(score - lse[:, None]), 0.0)
        dshare = dot(grad, tl.trans(value))
        dscore = share * (dshare - delta[:, None])
        dquery += dot(dscore.to(key.dtype), key)
    dquery = (dquery * scale).to(dquery_pointer.dtype.element_ty)
    column = tl.arange(0, HEAD)
    tl.store(
        dquery_pointer + row[:, None] * width + head * head_dim + column[None, :], dquery,
        mask=is_token[:, None] & (column < head_dim)[None, :],
    )  # fmt: skip
    along = tl.sum(dquery.to(tl.float32) * weight[None, :] * raw, axis=1)
    tl.store(along_pointer + head * num_rows + row, along, mask=is_token)


@triton.jit
def _cross_key_backward(
    grad_pointer, query_pointer, weight_pointer, rstd_pointer, key_pointer, value_pointer, length_pointer,
    lse_pointer, delta_pointer, dkey_pointer, dvalue_pointer,
    key_stride, value_stride, num_tokens, num_keys, num_heads, head_dim, num_rows, tokens_per_program, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    part, slot = tl.program_id(1), tl.program_id(2).to(tl.int64)
    clip, head = slot // num_heads, slot % num_heads
    width = num_heads * head_dim
    place = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    length = tl.load(length_pointer + clip)
    is_key = place < length
    key = _tile(key_pointer, clip * num_keys + place, is_key, key_stride, head, head_dim, HEAD)
    value = _tile(value_pointer, clip * num_keys + place, is_key, value_stride, head, head_dim, HEAD)
    dkey = tl.zeros([KEYS, HEAD], tl.float32)
    dvalue = tl.zeros([KEYS, HEAD], tl.float32)
    start = part * tokens_per_program
    end = tl.minimum(start + tokens_per_program, num_tokens)
    end = tl.where(tl.program_id(0) * KEYS < length, end, start)  # behind the caption: nothing to do
    for first in range(start, end, QUERIES):
        token = first + tl.arange(0, QUERIES)
        is_token = token < end
        row = clip * num_tokens + token
        _, query, _ = _normalised(
            query_pointer, weight_pointer, rstd_pointer, row, is_token, width, head, head_dim, HEAD
        )
        grad = _tile(grad_pointer, row, is_token, width, head, head_dim, HEAD)
        lse = tl.load(lse_pointer + head * num_rows + row, mask=is_token, other=0.0)
        delta = tl.load(delta_pointer + head * num_rows + row, mask=is_token, other=0.0)
        score = dot(key, tl.trans(query)) * scale
        share = tl.where(is_key[:, None] & is_token[None, :], tl.exp(score - lse[None, :]), 0.0)
        dvalue += dot(share.to(grad.dtype), grad)
        dshare = dot(value, tl.trans(grad))
        dscore = share * (dshare - delta[None, :])
        dkey += dot(dscore.to(query.dtype), query)
    column = tl.arange(0, HEAD)
    kept = (part * (tl.num_programs(2) // num_heads) + clip) * num_keys + place
    kept = kept[:, None] * width + head * head_dim + column[None, :]
    inside = (place < num_keys)[:, None] & (column < head_dim)[None, :]
    tl.store(dkey_pointer + kept, dkey * scale, mask=inside)
    tl.store(dvalue_pointer + kept, dvalue, mask=inside)


@torch.library.custom_op("sana_train::cross_attention_forward", mutates_args=())
def cross_attention_forward(
    query: Tensor,
    q_weight: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    num_heads: int,
    qk_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of RMS-normalised queries to the first keys of each clip.

    Args:
        query: (B, N, D) contiguous, before the norm.
        q_weight: (D,) of the norm.
        key: (B, S, D), normalised; rows contiguous, clips S rows apart.
        value: as ``key``.
        lengths: (B,) int32, 1..S.
        num_heads: A.
        qk_eps: of the norm.

    Returns:
        (B, N, D); for the backward pass (1, R) reciprocal RMS and (A, R) log-sums of exponentials, float32.
    """
    batch, num_tokens, width = query.shape
    head_dim, rows = width // num_heads, batch * num_tokens
    rstd = rms_statistics(query.view(-1, width), width, 1, qk_eps)
    out = torch.empty_like(query)
    lse = query.new_empty((num_heads, rows), dtype=torch.float32)
    _cross_forward[(triton.cdiv(num_tokens, _QUERIES), batch * num_heads)](
        query, q_weight, rstd, key, value, lengths, out, lse, key.stride(1), value.stride(1), num_tokens,
        key.shape[1], num_heads, head_dim, rows, head_dim**-0.5,
        QUERIES=_QUERIES, KEYS=_KEYS, HEAD=max(16, triton.next_power_of_2(head_dim)),
        num_warps=8, num_stages=2,
    )  # fmt: skip
    return out, rstd, lse


@cross_attention_forward.register_fake
def _(
    query: Tensor,
    q_weight: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    num_heads: int,
    qk_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = query.shape[0] * query.shape[1]
    rstd = query.new_empty((1, rows), dtype=torch.float32)
    return torch.empty_like(query), rstd, query.new_empty((num_heads, rows), dtype=torch.float32)


@torch.library.custom_op("sana_train::cross_attention_backward", mutates_args=())
def cross_attention_backward(
    grad: Tensor, out: Tensor, query: Tensor, q_weight: Tensor, rstd: Tensor, key: Tensor, value: Tensor,
    lengths: Tensor, lse: Tensor, num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``cross_attention_forward``.

    Returns:
        (B, N, D) of query; (2, D) float32 of the norm's weight, and the sum of the first over rows, which is
        the gradient of a bias in it; (2, B, S, D) of key and of value.
    """
    batch, num_tokens, width = query.shape
    num_keys, head_dim, rows = key.shape[1], width // num_heads, batch * num_tokens
    head = max(16, triton.next_power_of_2(head_dim))
    dquery = torch.empty_like(query)
    delta, along = torch.empty_like(lse), torch.empty_like(lse)
    strides = (key.stride(1), value.stride(1))
    sizes = (num_tokens, num_keys, num_heads, head_dim, rows)
    _cross_query_backward[(triton.cdiv(num_tokens, _QUERIES), batch * num_heads)](
        grad, out, query, q_weight, rstd, key, value, lengths, lse, dquery, delta, along, *strides, *sizes,
        head_dim**-0.5, QUERIES=_QUERIES, KEYS=_KEYS, HEAD=head, num_warps=8, num_stages=3,
    )  # fmt: skip
    tiles = triton.cdiv(num_keys, _KEYS)
    steps = triton.cdiv(num_tokens, _BACKWARD_QUERIES)
    tokens = (
        triton.cdiv(steps, max(1, min(steps, _PROGRAMS // (tiles * batch * num_heads)))) * _BACKWARD_QUERIES
    )
    parts = triton.cdiv(num_tokens, tokens)
    partial = grad.new_empty((2, parts, batch, num_keys, width), dtype=torch.float32)
    _cross_key_backward[(tiles, parts, batch * num_heads)](
        grad, query, q_weight, rstd, key, value, lengths, lse, delta, partial[0], partial[1], *strides,
        *sizes,
        tokens, head_dim**-0.5, QUERIES=_BACKWARD_QUERIES, KEYS=_KEYS, HEAD=head, num_warps=8, num_stages=3,
    )  # fmt: skip
    sums = rms_backward(
        dquery.view(-1, width), query.view(-1, width), q_weight, rstd, along.sum(0, keepdim=True), width
    )
    return dquery, sums, partial.sum(1).to(key.dtype)


@cross_attention_backward.register_fake
def _(
    grad: Tensor, out: Tensor, query: Tensor, q_weight: Tensor, rstd: Tensor, key: Tensor, value: Tensor,
    lengths: Tensor, lse: Tensor, num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sums = query.new_empty((2, query.shape[-1]), dtype=torch.float32)
    return torch.empty_like(query), sums, query.new_empty((2, *key.shape))
