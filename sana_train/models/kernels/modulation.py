"""Adaptive layer norm and gated residual, forward and backward, in one pass over memory each.

Numbers are computed in float32 whatever they are stored in. Sums over tokens (gradients of shift, scale, gate
and bias) are added up in a fixed order, so equal inputs give equal gradients.

Legend: R rows = tokens of all clips, G groups of rows that share a modulation (clips, or their frames),
D width.
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

_WARPS = 8
# Where sums over rows are taken. Whole rows, two programs for each multiprocessor of an H100, one at a time:
_PROGRAMS, _WIDE_WARPS = 264, 16
_STAGES = tl.constexpr(3)  # of rows under way
# Tiles, where no sum is over columns:
_ROWS, _COLUMNS = 64, 64
_STEP = tl.constexpr(16)  # rows


@triton.jit  # whose arguments must not be annotated
def _norm_forward(
    x_pointer, update_pointer, bias_pointer, shift_pointer, scale_pointer, sum_pointer, out_pointer,
    normalised_pointer, rstd_pointer, rows_per_group, shift_stride, scale_stride, width, eps,
    HAS_UPDATE: tl.constexpr, IS_KEPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = row // rows_per_group
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_pointer + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        x += tl.load(update_pointer + row * width + column, mask=inside, other=0.0).to(tl.float32)
        x += tl.load(bias_pointer + column, mask=inside, other=0.0).to(tl.float32)
        x = x.to(sum_pointer.dtype.element_ty)
        tl.store(sum_pointer + row * width + column, x, mask=inside)
        x = x.to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x) / width, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred) / width + eps)
    normalised = centred * rstd
    shift = tl.load(shift_pointer + group * shift_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_pointer + group * scale_stride + column, mask=inside, other=0.0).to(tl.float32)
    out = normalised * (1.0 + scale) + shift
    tl.store(out_pointer + row * width + column, out.to(out_pointer.dtype.element_ty), mask=inside)
    if IS_KEPT:
        kept = normalised.to(normalised_pointer.dtype.element_ty)
        tl.store(normalised_pointer + row * width + column, kept, mask=inside)
        tl.store(rstd_pointer + row, rstd)


@triton.jit
def _norm_backward(
    grad_pointer, residual_pointer, normalised_pointer, rstd_pointer, shift_pointer, scale_pointer,
    dx_pointer, dupdate_pointer, out_pointer, dshift_pointer, dscale_pointer, dbias_pointer,
    rows_per_group, rows_per_program, shift_stride, scale_stride, width,
    HAS_UPDATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tile, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    shift = tl.load(shift_pointer + group * shift_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = (
        tl.load(scale_pointer + group * scale_stride + column, mask=inside, other=0.0).to(tl.float32) + 1.0
    )
    dshift = tl.zeros([BLOCK], tl.float32)
    dscale = tl.zeros([BLOCK], tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    first = tile * rows_per_program
    end = tl.minimum(first + rows_per_program, rows_per_group)
    for index in tl.range(first, end, num_stages=_STAGES):
        row = group * rows_per_group + index
        place = row * width + column
        grad = tl.load(grad_pointer + place, mask=inside, other=0.0).to(tl.float32)
        normalised = tl.load(normalised_pointer + place, mask=inside, other=0.0).to(tl.float32)
        residual = tl.load(residual_pointer + place, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_pointer + row)
        out = normalised * scale + shift
        tl.store(out_pointer + place, out.to(out_pointer.dtype.element_ty), mask=inside)
        inner = grad * scale
        along = tl.sum(inner * normalised) / width
        dx = rstd * (inner - tl.sum(inner) / width - normalised * along) + residual
        tl.store(dx_pointer + place, dx.to(dx_pointer.dtype.element_ty), mask=inside)
        dshift += grad
        dscale += grad * normalised
        if HAS_UPDATE:
            tl.store(dupdate_pointer + place, dx.to(dupdate_pointer.dtype.element_ty), mask=inside)
            dbias += dx
    place = (group * tl.num_programs(0) + tile) * width + column
    tl.store(dshift_pointer + place, dshift, mask=inside)
    tl.store(dscale_pointer + place, dscale, mask=inside)
    if HAS_UPDATE:
        tl.store(dbias_pointer + place, dbias, mask=inside)


@triton.jit
def _gate_forward(
    x_pointer, update_pointer, bias_pointer, gate_pointer, out_pointer, copy_pointer,
    rows_per_group, gate_stride, width,
    HAS_BIAS: tl.constexpr, HAS_COPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    x = tl.load(x_pointer + place, mask=inside, other=0.0).to(tl.float32)
    update = tl.load(update_pointer + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        update += tl.load(bias_pointer + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_pointer + row // rows_per_group * gate_stride + column, mask=inside, other=0.0)
    x += update * gate.to(tl.float32)
    tl.store(out_pointer + place, x.to(out_pointer.dtype.element_ty), mask=inside)
    if HAS_COPY:
        tl.store(copy_pointer + place, x.to(copy_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _gate_backward(
    grad_pointer, copy_grad_pointer, update_pointer, bias_pointer, gate_pointer,
    dx_pointer, dupdate_pointer, dgate_pointer, dbias_pointer, rows_per_group, gate_stride, width,
    HAS_BIAS: tl.constexpr, HAS_COPY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tile, group = tl.program_id(1), tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < width
    if HAS_BIAS:
        bias = tl.load(bias_pointer + column, mask=known, other=0.0).to(tl.float32)
    gate = tl.load(gate_pointer + group * gate_stride + column, mask=known, other=0.0).to(tl.float32)
    dgate = tl.zeros([_STEP, COLUMNS], tl.float32)
    dbias = tl.zeros([_STEP, COLUMNS], tl.float32)
    for first in tl.static_range(0, ROWS, _STEP):
        index = tile * ROWS + first + tl.arange(0, _STEP)
        inside = (index < rows_per_group)[:, None] & known[None, :]
        place = (group * rows_per_group + index)[:, None] * width + column[None, :]
        grad = tl.load(grad_pointer + place, mask=inside, other=0.0).to(tl.float32)
        if HAS_COPY:
            grad += tl.load(copy_grad_pointer + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(dx_pointer + place, grad.to(dx_pointer.dtype.element_ty), mask=inside)
        update = tl.load(update_pointer + place, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            update += bias[None, :]
        dgate += grad * update
        dupdate = grad * gate[None, :]
        dbias += dupdate
        tl.store(dupdate_pointer + place, dupdate.to(dupdate_pointer.dtype.element_ty), mask=inside)
    place = (group * tl.num_programs(1) + tile) * width + column
    tl.store(dgate_pointer + place, tl.sum(dgate, axis=0), mask=known)
    if HAS_BIAS:
        tl.store(dbias_pointer + place, tl.sum(dbias, axis=0), mask=known)


@torch.library.custom_op("sana_train::norm_forward", mutates_args=())
def norm_forward(
    x: Tensor, update: Tensor | None, bias: Tensor | None, shift: Tensor, scale: Tensor, eps: float,
    dtype: torch.dtype, is_kept: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Layer norm, times 1 + scale, plus shift, of x or of x + update + bias.

    Args:
        x: (R, D) contiguous.
        update: (R, D) contiguous, or None.
        bias: (D,), given if an update is.
        shift: (G, D), rows contiguous; rows of ``x`` fall into G equal runs.
        scale: as ``shift``.
        eps: added to the variance.
        dtype: of the result.
        is_kept: whether a backward pass needs the others.

    Returns:
        (R, D) modulated; (R, D) normalised, both in ``dtype``; (R,) reciprocal deviations in float32; the
        (R, D) sum in the dtype of x, empty without an update. The second is empty and the third undefined
        unless they are kept.
    """
    rows, width = x.shape
    out = x.new_empty(x.shape, dtype=dtype)
    normalised = x.new_empty(x.shape if is_kept else (0,), dtype=dtype)
    rstd = x.new_empty(rows, dtype=torch.float32)
    total = x.new_empty(x.shape if update is not None else (0,))
    _norm_forward[(rows,)](
        x, update, bias, shift, scale, total, out, normalised, rstd, rows // shift.shape[0], shift.stride(0),
        scale.stride(0), width, eps, HAS_UPDATE=update is not None, IS_KEPT=is_kept,
        BLOCK=triton.next_power_of_2(width), num_warps=_WARPS,
    )  # fmt: skip
    return out, normalised, rstd, total


@norm_forward.register_fake
def _(
    x: Tensor, update: Tensor | None, bias: Tensor | None, shift: Tensor, scale: Tensor, eps: float,
    dtype: torch.dtype, is_kept: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    out = x.new_empty(x.shape, dtype=dtype)
    normalised = x.new_empty(x.shape if is_kept else (0,), dtype=dtype)
    total = x.new_empty(x.shape if update is not None else (0,))
    return out, normalised, x.new_empty(x.shape[0], dtype=torch.float32), total


@torch.library.custom_op("sana_train::norm_backward", mutates_args=())
def norm_backward(
    grad: Tensor, residual: Tensor, normalised: Tensor, rstd: Tensor, shift: Tensor, scale: Tensor,
    has_update: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``norm_forward``; ``residual`` is the gradient that reaches x past the norm.

    Returns:
        (R, D) gradient of x in the dtype of ``residual``; (R, D) the modulated rows once more; float32
        (2, G, D) gradients of shift and of scale, or (3, G, D) with each group's share of the bias's; (R, D)
        of the update in the dtype of ``grad``, empty if there was none.
    """
    (rows, width), groups = grad.shape, shift.shape[0]
    rows_per_group = rows // groups
    rows_per_program = triton.cdiv(rows_per_group, max(1, min(rows_per_group, _PROGRAMS // groups)))
    tiles = triton.cdiv(rows_per_group, rows_per_program)
    dx, out = torch.empty_like(residual), torch.empty_like(grad)
    dupdate = grad.new_empty(grad.shape if has_update else (0,))
    partial = grad.new_empty((3 if has_update else 2, groups, tiles, width), dtype=torch.float32)
    _norm_backward[(tiles, groups)](
        grad, residual, normalised, rstd, shift, scale, dx, dupdate, out, partial[0], partial[1],
        partial[-1], rows_per_group, rows_per_program, shift.stride(0), scale.stride(0), width,
        HAS_UPDATE=has_update, BLOCK=triton.next_power_of_2(width), num_warps=_WIDE_WARPS,
    )  # fmt: skip
    return dx, out, partial.sum(2), dupdate


@norm_backward.register_fake
def _(
    grad: Tensor, residual: Tensor, normalised: Tensor, rstd: Tensor, shift: Tensor, scale: Tensor,
    has_update: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sums = grad.new_empty((3 if has_update else 2, *shift.shape), dtype=torch.float32)
    dupdate = grad.new_empty(grad.shape if has_update else (0,))
    return torch.empty_like(residual), torch.empty_like(grad), sums, dupdate


@torch.library.custom_op("sana_train::gate_forward", mutates_args=())
def gate_forward(
    x: Tensor, update: Tensor, bias: Tensor | None, gate: Tensor, copy_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """x + gate * (update + bias).

    Args:
        x: (R, D) contiguous.
        update: (R, D) contiguous.
        bias: (D,) or None.
        gate: (G, D), rows contiguous.
        copy_dtype: of a second, rounded result; None for none.

    Returns:
        (R, D) in the dtype of ``x``, and the same in ``copy_dtype`` or an empty tensor.
    """
    rows, width = x.shape
    out = torch.empty_like(x)
    copy = x.new_empty(x.shape if copy_dtype is not None else (0,), dtype=copy_dtype)
    groups = gate.shape[0]
    _gate_forward[(rows,)](
        x, update, bias, gate, out, copy, rows // groups, gate.stride(0), width,
        HAS_BIAS=bias is not None, HAS_COPY=copy_dtype is not None,
        BLOCK=triton.next_power_of_2(width), num_warps=_WARPS,
    )  # fmt: skip
    return out, copy


@gate_forward.register_fake
def _(
    x: Tensor, update: Tensor, bias: Tensor | None, gate: Tensor, copy_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape if copy_dtype is not None else (0,), dtype=copy_dtype)


@torch.library.custom_op("sana_train::gate_backward", mutates_args=())
def gate_backward(
    grad: Tensor, copy_grad: Tensor | None, update: Tensor, bias: Tensor | None, gate: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``gate_forward``.

    Args:
        grad: (R, D) of the first result.
        copy_grad: of the second, or None.
        update: as it was.
        bias: as it was.
        gate: as it was.
        dtype: of the gradient of ``update``.

    Returns:
        (R, D) gradient of x (empty without ``copy_grad``: it is ``grad``); (R, D) of update in ``dtype``;
        (1, G, D) float32 of gate, or (2, G, D) with each group's share of the bias's.
    """
    rows, width = grad.shape
    groups = gate.shape[0]
    rows_per_group = rows // groups
    tiles = triton.cdiv(rows_per_group, _ROWS)
    dx = torch.empty_like(grad) if copy_grad is not None else grad.new_empty(0)
    dupdate = grad.new_empty(grad.shape, dtype=dtype)
    partial = grad.new_empty((1 if bias is None else 2, groups, tiles, width), dtype=torch.float32)
    _gate_backward[(triton.cdiv(width, _COLUMNS), tiles, groups)](
        grad, copy_grad, update, bias, gate, dx, dupdate, partial[0], partial[-1], rows_per_group,
        gate.stride(0), width,
        HAS_BIAS=bias is not None, HAS_COPY=copy_grad is not None,
        ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return dx, dupdate, partial.sum(2)


@gate_backward.register_fake
def _(
    grad: Tensor, copy_grad: Tensor | None, update: Tensor, bias: Tensor | None, gate: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dx = torch.empty_like(grad) if copy_grad is not None else grad.new_empty(0)
    sums = grad.new_empty((1 if bias is None else 2, *gate.shape), dtype=torch.float32)
    return dx, grad.new_empty(grad.shape, dtype=dtype), sums
