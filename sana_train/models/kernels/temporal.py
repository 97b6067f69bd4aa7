"""What a temporal convolution of three frames multiplies: a position beside itself in the frames around.

Its weight is (D, 3 D). Read as (3 D, D) without moving a number, its rows are output channels by taps; so
gradients are gathered in that order, and neither the weight nor its gradient is ever put in another.

Legend: B batch, T frames, P positions of a frame, D width.
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

_PLACES = 1024  # of a program that gathers readers: eight to a thread


@triton.jit  # whose arguments must not be annotated
def _gather_neighbours(x_pointer, out_pointer, frames, positions, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    frame = row // positions % frames
    column = tl.arange(0, BLOCK)
    inside = column < width
    for tap in tl.static_range(3):
        is_there = (frame + tap >= 1) & (frame + tap <= frames)
        source = x_pointer + (row + (tap - 1) * positions) * width + column
        value = tl.load(source, mask=inside & is_there, other=0.0)
        tl.store(out_pointer + (row * 3 + tap) * width + column, value, mask=inside)


@triton.jit
def _gather_readers(x_pointer, out_pointer, frames, positions, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    frame = (row // positions % frames).to(tl.int32)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column, tap = place // 3, place % 3
    # The frame after read this one by the first third of the weight, the frame before by the last.
    ahead = 1 - tap
    inside = (column < width) & (frame + ahead >= 0) & (frame + ahead < frames)
    value = tl.load(x_pointer + row * width + (ahead * (positions * width) + column), mask=inside, other=0.0)
    tl.store(out_pointer + row * (3 * width) + place, value, mask=column < width)


@torch.library.custom_op("sana_train::neighbours", mutates_args=())
def neighbours(x: Tensor) -> Tensor:
    """(B, T, P, D) contiguous -> (B T P, 3 D): a position in the frame before, its own and the one after."""
    _, frames, positions, width = x.shape
    rows = x.numel() // width
    out = x.new_empty((rows, 3 * width))
    _gather_neighbours[(rows,)](
        x, out, frames, positions, width, BLOCK=triton.next_power_of_2(width), num_warps=8
    )
    return out


@neighbours.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.numel() // x.shape[-1], 3 * x.shape[-1]))


@torch.library.custom_op("sana_train::readers", mutates_args=())
def readers(x: Tensor) -> Tensor:
    """The gradient of what ``neighbours`` gave to the product, for each position that was read.

    (B, T, P, D) contiguous -> (B T P, 3 D): channel by channel, the position in the frame after, its own and
    the one before.
    """
    _, frames, positions, width = x.shape
    rows = x.numel() // width
    out = x.new_empty((rows, 3 * width))
    _gather_readers[(rows, triton.cdiv(3 * width, _PLACES))](
        x, out, frames, positions, width, BLOCK=_PLACES, num_warps=4
    )
    return out


@readers.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.numel() // x.shape[-1], 3 * x.shape[-1]))
