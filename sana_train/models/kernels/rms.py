"""Pieces of an RMS norm over the full width for kernels that see one head of it.

Legend: R rows, D width of a norm, P norms side by side in a row.
"""


# ruff: noqa: ANN001, ANN202
# To a type checker Triton's language is no Python.
# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 64, 64  # of a program in the backward pass


@triton.jit  # whose arguments must not be annotated
def _rms_statistics(x_pointer, rstd_pointer, stride, num_rows, width, eps, BLOCK: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    x = tl.load(x_pointer + row * stride + part * width + column, mask=column < width, other=0.0)
    x = x.to(tl.float32)
    tl.store(rstd_pointer + part * num_rows + row, tl.rsqrt(tl.sum(x * x) / width + eps))


@triton.jit
def _rms_backward(
    grad_pointer, x_pointer, weight_pointer, rstd_pointer, along_pointer, dweight_pointer, dbias_pointer,
    grad_stride, x_stride, num_rows, width, total_width, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tile, part = tl.program_id(0), tl.program_id(2)
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column = part * width + own
    inside = (row < num_rows)[:, None] & (own < width)[None, :]
    place = grad_pointer + row[:, None] * grad_stride + column[None, :]
    grad = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_pointer + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_pointer + column, mask=own < width, other=0.0).to(tl.float32)
    rstd = tl.load(rstd_pointer + part * num_rows + row, mask=row < num_rows, other=0.0)
    along = tl.load(along_pointer + part * num_rows + row, mask=row < num_rows, other=0.0)
    dx = rstd[:, None] * (grad * weight[None, :] - x * (rstd * rstd * along / width)[:, None])
    tl.store(place, dx.to(grad_pointer.dtype.element_ty), mask=inside)
    kept = tile * total_width + column
    tl.store(dweight_pointer + kept, tl.sum(grad * x * rstd[:, None], axis=0), mask=own < width)
    tl.store(dbias_pointer + kept, tl.sum(tl.where(inside, dx, 0.0), axis=0), mask=own < width)


def rms_statistics(x: Tensor, width: int, parts: int, eps: float) -> Tensor:
    """(P, R) float32 reciprocal RMS of the first P runs of ``width`` columns of each row of (R, >= P D)."""
    rstd = x.new_empty((parts, x.shape[0]), dtype=torch.float32)
    _rms_statistics[(x.shape[0], parts)](
        x, rstd, x.stride(0), x.shape[0], width, eps, BLOCK=triton.next_power_of_2(width), num_warps=4
    )
    return rstd


def rms_backward(grad: Tensor, x: Tensor, weights: Tensor, rstd: Tensor, along: Tensor, width: int) -> Tensor:
    """Turn gradients of P norms into gradients of what they normalise, in place.

    Args:
        grad: (R, >= P D); its first P D columns are overwritten.
        x: (R, >= P D), what was normalised.
        weights: (P D,).
        rstd: (P, R), from ``rms_statistics``.
        along: (P, R) float32, the sum over a norm's columns of gradient times weight times x.
        width: D.

    Returns:
        (2, P D) float32: gradient of the weights; sums of the new gradients over rows, which are the gradient
        of a bias that was added to x.
    """
    rows, parts = x.shape[0], rstd.shape[0]
    tiles = triton.cdiv(rows, _ROWS)
    partial = x.new_empty((2, tiles, parts * width), dtype=torch.float32)
    _rms_backward[(tiles, triton.cdiv(width, _COLUMNS), parts)](
        grad, x, weights, rstd, along, partial[0], partial[1], grad.stride(0), x.stride(0), rows, width,
        parts * width, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return partial.sum(1)
