"""SiLU, depthwise 3x3 convolution within a frame and SiLU gate, channels last, with nothing kept in between.

    a = silu(x + b_in);  z = conv(a) + b;  out = z[:M] * silu(z[M:])

A program walks along two rows of a frame with a slice of the channels: four rows are read for two that are
written, each column once, and three columns of partial sums stay in registers. The backward pass reads x
again, computes z once more, and gives the gated result too, so that the layer behind needs not keep it.
Sums over positions are added in a fixed order.

Legend: F frames of all clips, H/W rows/columns, M hidden width; x has 2 M channels.
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

from sana_train.models.kernels.portable import tanh

_CHANNELS = 128  # of a program; two to a thread
_WARPS = 2
_PAIRS = 4  # of rows that a program walks along where it sums over positions
_FAR = tl.constexpr(-30000.0)  # whose silu is zero


@triton.jit  # whose arguments must not be annotated
def _active(pointer, half_bias, inside):
    """silu(x + bias) at ``pointer`` as h (1 + tanh h), h = (x + bias) / 2; zero outside."""
    half = tl.load(pointer, mask=inside, other=_FAR).to(tl.float32) * 0.5 + half_bias
    return half * tanh(half) + half


@triton.jit
def _taps(pointer, channel, is_channel):
    """The nine weights of each channel, row by row."""
    place = pointer + channel * 9
    w00 = tl.load(place, mask=is_channel, other=0.0).to(tl.float32)
    w01 = tl.load(place + 1, mask=is_channel, other=0.0).to(tl.float32)
    w02 = tl.load(place + 2, mask=is_channel, other=0.0).to(tl.float32)
    w10 = tl.load(place + 3, mask=is_channel, other=0.0).to(tl.float32)
    w11 = tl.load(place + 4, mask=is_channel, other=0.0).to(tl.float32)
    w12 = tl.load(place + 5, mask=is_channel, other=0.0).to(tl.float32)
    w20 = tl.load(place + 6, mask=is_channel, other=0.0).to(tl.float32)
    w21 = tl.load(place + 7, mask=is_channel, other=0.0).to(tl.float32)
    w22 = tl.load(place + 8, mask=is_channel, other=0.0).to(tl.float32)
    return w00, w01, w02, w10, w11, w12, w20, w21, w22


@triton.jit
def _vector(pointer, channel, is_channel):
    return tl.load(pointer + channel, mask=is_channel, other=0.0).to(tl.float32)


@triton.jit
def _gated_conv(
    x_pointer, in_bias_pointer, weight_pointer, bias_pointer, grad_pointer, dz_pointer, out_pointer,
    height, width, hidden, IS_BACKWARD: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Two rows of the gated result; backward also of the gradients of both halves of z."""
    frame, top = tl.program_id(2).to(tl.int64), tl.program_id(1) * 2
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < hidden
    v00, v01, v02, v10, v11, v12, v20, v21, v22 = _taps(weight_pointer, channel, known)
    g00, g01, g02, g10, g11, g12, g20, g21, g22 = _taps(weight_pointer + hidden * 9, channel, known)
    v_in = _vector(in_bias_pointer, channel, known) * 0.5
    g_in = _vector(in_bias_pointer + hidden, channel, known) * 0.5
    v_bias, g_bias = _vector(bias_pointer, channel, known), _vector(bias_pointer + hidden, channel, known)
    line, wide = width * hidden, 2 * hidden
    x1_pointer = x_pointer + (frame * height + top) * 2 * line + channel
    x0_pointer, x2_pointer, x3_pointer = x1_pointer - 2 * line, x1_pointer + 2 * line, x1_pointer + 4 * line
    known0, known2, known3 = known & (top > 0), known & (top + 1 < height), known & (top + 2 < height)
    # Of the column before the one that is read.
    start = (frame * height + top) * line - hidden + channel
    out_pointer += start
    if IS_BACKWARD:
        grad_pointer += start
        dz_pointer += (frame * height + top) * 2 * line - wide + channel
    # Sums of columns that are not complete: of the one being left, and of the next.
    v_left0, v_left1, v_here0, v_here1 = v_bias, v_bias, v_bias, v_bias
    g_left0, g_left1, g_here0, g_here1 = g_bias, g_bias, g_bias, g_bias
    for column in range(width + 1):
        is_column = column < width
        offset = column * wide
        a0 = _active(x0_pointer + offset, v_in, known0 & is_column)
        a1 = _active(x1_pointer + offset, v_in, known & is_column)
        a2 = _active(x2_pointer + offset, v_in, known2 & is_column)
        a3 = _active(x3_pointer + offset, v_in, known3 & is_column)
        v0 = v_left0 + v02 * a0 + v12 * a1 + v22 * a2
        v1 = v_left1 + v02 * a1 + v12 * a2 + v22 * a3
        v_left0 = v_here0 + v01 * a0 + v11 * a1 + v21 * a2
        v_left1 = v_here1 + v01 * a1 + v11 * a2 + v21 * a3
        v_here0 = v_bias + v00 * a0 + v10 * a1 + v20 * a2
        v_here1 = v_bias + v00 * a1 + v10 * a2 + v20 * a3
        offset += hidden
        a0 = _active(x0_pointer + offset, g_in, known0 & is_column)
        a1 = _active(x1_pointer + offset, g_in, known & is_column)
        a2 = _active(x2_pointer + offset, g_in, known2 & is_column)
        a3 = _active(x3_pointer + offset, g_in, known3 & is_column)
        g0 = g_left0 + g02 * a0 + g12 * a1 + g22 * a2
        g1 = g_left1 + g02 * a1 + g12 * a2 + g22 * a3
        g_left0 = g_here0 + g01 * a0 + g11 * a1 + g21 * a2
        g_left1 = g_here1 + g01 * a1 + g11 * a2 + g21 * a3
        g_here0 = g_bias + g00 * a0 + g10 * a1 + g20 * a2
        g_here1 = g_bias + g00 * a1 + g10 * a2 + g20 * a3
        # With this column in, the one before it is complete.
        place, is_done = column * hidden, column > 0
        _finish(v0, g0, grad_pointer, dz_pointer, out_pointer, place, known & is_done, hidden, IS_BACKWARD)
        _finish(
            v1, g1, grad_pointer, dz_pointer, out_pointer, place + line, known2 & is_done, hidden, IS_BACKWARD
        )


@triton.jit
def _finish(
    value, gate, grad_pointer, dz_pointer, out_pointer, place, inside, hidden, IS_BACKWARD: tl.constexpr
):
    half = 0.5 * gate
    bend = tanh(half)
    active = half * bend + half
    tl.store(out_pointer + place, (value * active).to(out_pointer.dtype.element_ty), mask=inside)
    if IS_BACKWARD:
        grad = tl.load(grad_pointer + place, mask=inside, other=0.0).to(tl.float32)
        share = 0.5 * bend + 0.5
        dgate = grad * value * (active * (1.0 - share) + share)
        tl.store(dz_pointer + 2 * place, (grad * active).to(dz_pointer.dtype.element_ty), mask=inside)
        tl.store(dz_pointer + 2 * place + hidden, dgate.to(dz_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _active_and_slope(pointer, half_bias, inside):
    """silu(x + bias), zero outside, and its derivative."""
    half = tl.load(pointer, mask=inside, other=_FAR).to(tl.float32) * 0.5 + half_bias
    bend = tanh(half)
    active, share = half * bend + half, 0.5 * bend + 0.5
    return active, active * (1.0 - share) + share


@triton.jit
def _conv_backward(
    x_pointer, in_bias_pointer, weight_pointer, dz_pointer, dx_pointer, partial_pointer,
    height, width, channels, PAIRS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and sums over the program's rows of those of weights and of both biases."""
    frame, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    w00, w01, w02, w10, w11, w12, w20, w21, w22 = _taps(weight_pointer, channel, known)
    half_bias = _vector(in_bias_pointer, channel, known) * 0.5
    line = width * channels
    zero = tl.zeros([CHANNELS], tl.float32)
    s00, s01, s02, s10, s11, s12, s20, s21, s22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    dbias, din_bias = zero, zero
    for pair in range(PAIRS):
        top = (part * PAIRS + pair) * 2
        start = (frame * height + top) * line + channel
        is_row1, is_row2 = known & (top < height), known & (top + 1 < height)
        is_row0, is_row3 = is_row1 & (top > 0), known & (top + 2 < height)
        # Activations and slopes at the columns left of, at and right of the one whose dz is read.
        before0, before1, slope_before0, slope_before1 = zero, zero, zero, zero
        here0, slope0 = _active_and_slope(x_pointer + start, half_bias, is_row1)
        here1, slope1 = _active_and_slope(x_pointer + start + line, half_bias, is_row2)
        left0, left1, mid0, mid1 = zero, zero, zero, zero
        for column in range(width + 1):
            place = column * channels
            is_next, is_column = column + 1 < width, column < width
            after = x_pointer + start + place + channels
            after0, slope_after0 = _active_and_slope(after, half_bias, is_row1 & is_next)
            after1, slope_after1 = _active_and_slope(after + line, half_bias, is_row2 & is_next)
            read = dz_pointer + start + place
            d0 = tl.load(read - line, mask=is_row0 & is_column, other=0.0).to(tl.float32)
            d1 = tl.load(read, mask=is_row1 & is_column, other=0.0).to(tl.float32)
            d2 = tl.load(read + line, mask=is_row2 & is_column, other=0.0).to(tl.float32)
            d3 = tl.load(read + 2 * line, mask=is_row3 & is_column, other=0.0).to(tl.float32)
            # z at p takes tap (i, j) from a at p + (i - 1, j - 1).
            done0 = left0 + w20 * d0 + w10 * d1 + w00 * d2
            done1 = left1 + w20 * d1 + w10 * d2 + w00 * d3
            left0 = mid0 + w21 * d0 + w11 * d1 + w01 * d2
            left1 = mid1 + w21 * d1 + w11 * d2 + w01 * d3
            mid0 = w22 * d0 + w12 * d1 + w02 * d2
            mid1 = w22 * d1 + w12 * d2 + w02 * d3
            s00 += before0 * d2 + before1 * d3
            s01 += here0 * d2 + here1 * d3
            s02 += after0 * d2 + after1 * d3
            s10 += before0 * d1 + before1 * d2
            s11 += here0 * d1 + here1 * d2
            s12 += after0 * d1 + after1 * d2
            s20 += before0 * d0 + before1 * d1
            s21 += here0 * d0 + here1 * d1
            s22 += after0 * d0 + after1 * d1
            dbias += d1 + d2
            dx0, dx1 = done0 * slope_before0, done1 * slope_before1
            written = dx_pointer + start + place - channels
            inside0, inside1 = is_row1 & (column > 0), is_row2 & (column > 0)
            tl.store(written, dx0.to(dx_pointer.dtype.element_ty), mask=inside0)
            tl.store(written + line, dx1.to(dx_pointer.dtype.element_ty), mask=inside1)
            din_bias += tl.where(inside0, dx0, 0.0) + tl.where(inside1, dx1, 0.0)
            before0, before1, slope_before0, slope_before1 = here0, here1, slope0, slope1
            here0, here1, slope0, slope1 = after0, after1, slope_after0, slope_after1
    place = partial_pointer + (frame * tl.num_programs(1) + part) * 11 * channels + channel
    tl.store(place, s00, mask=known)
    tl.store(place + channels, s01, mask=known)
    tl.store(place + 2 * channels, s02, mask=known)
    tl.store(place + 3 * channels, s10, mask=known)
    tl.store(place + 4 * channels, s11, mask=known)
    tl.store(place + 5 * channels, s12, mask=known)
    tl.store(place + 6 * channels, s20, mask=known)
    tl.store(place + 7 * channels, s21, mask=known)
    tl.store(place + 8 * channels, s22, mask=known)
    tl.store(place + 9 * channels, dbias, mask=known)
    tl.store(place + 10 * channels, din_bias, mask=known)


@torch.library.custom_op("sana_train::gated_conv_forward", mutates_args=())
def gated_conv_forward(
    x: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor, height: int, width: int
) -> Tensor:
    """The gated convolution of x (R, 2 M) contiguous, R = frames of height x width -> (R, M).

    Args:
        x: projections without their bias, channels last.
        in_bias: (2 M,) of the projection.
        weight: (2 M, 1, 3, 3) contiguous.
        bias: (2 M,) of the convolution.
        height: H.
        width: W.
    """
    hidden = x.shape[1] // 2
    out = x.new_empty((x.shape[0], hidden))
    grid = (triton.cdiv(hidden, _CHANNELS), triton.cdiv(height, 2), x.shape[0] // (height * width))
    _gated_conv[grid](
        x, in_bias, weight, bias, None, None, out, height, width, hidden,
        IS_BACKWARD=False, CHANNELS=_CHANNELS, num_warps=_WARPS,
    )  # fmt: skip
    return out


@gated_conv_forward.register_fake
def _(x: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] // 2))


@torch.library.custom_op("sana_train::gated_conv_backward", mutates_args=())
def gated_conv_backward(
    grad: Tensor, x: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Gradient of the gate: (R, 2 M) of z, and (R, M) the forward result once more."""
    hidden = x.shape[1] // 2
    dz, out = torch.empty_like(x), torch.empty_like(grad)
    grid = (triton.cdiv(hidden, _CHANNELS), triton.cdiv(height, 2), x.shape[0] // (height * width))
    _gated_conv[grid](
        x, in_bias, weight, bias, grad, dz, out, height, width, hidden,
        IS_BACKWARD=True, CHANNELS=_CHANNELS, num_warps=_WARPS,
    )  # fmt: skip
    return dz, out


@gated_conv_backward.register_fake
def _(
    grad: Tensor, x: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(grad)


@torch.library.custom_op("sana_train::silu_conv_backward", mutates_args=())
def silu_conv_backward(
    dz: Tensor, x: Tensor, in_bias: Tensor, weight: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient of the convolution and the activation before it.

    Returns:
        (R, 2 M) of x; float32 of weight (2 M, 1, 3, 3), bias and in_bias (2 M,).
    """
    channels, frames = x.shape[1], x.shape[0] // (height * width)
    dx = torch.empty_like(x)
    parts = triton.cdiv(triton.cdiv(height, 2), _PAIRS)
    partial = x.new_empty((frames * parts, 11, channels), dtype=torch.float32)
    _conv_backward[(triton.cdiv(channels, _CHANNELS), parts, frames)](
        x, in_bias, weight, dz, dx, partial, height, width, channels,
        PAIRS=_PAIRS, CHANNELS=_CHANNELS, num_warps=_WARPS,
    )  # fmt: skip
    sums = partial.sum(0)
    return dx, sums[:9].t().contiguous().view_as(weight), sums[9].clone(), sums[10].clone()


@silu_conv_backward.register_fake
def _(
    dz: Tensor, x: Tensor, in_bias: Tensor, weight: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.empty_like(weight, dtype=torch.float32)
    bias = x.new_empty(x.shape[1], dtype=torch.float32)
    return torch.empty_like(x), wide, bias, torch.empty_like(bias)
