"""Norm over channels, SiLU and the padding of the next convolution as one Triton kernel.

Each position of the padded result reads its source position once: what separate steps read and write four
times moves through memory twice. For GPUs, without gradients; needs Triton, which GPU builds of torch bring.

Legend: B batch, C channels, F frames, H/W rows/columns.
"""

# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from sana_train.autoencoders.layout import CHANNELS_LAST

_NUMBERS = 4096  # of one program


@triton.jit  # whose arguments must not be annotated
def _kernel(
    x_pointer,
    out_pointer,
    num_positions,
    num_frames,
    height,
    width,
    out_frames,
    out_height,
    out_width,
    head,
    border,
    channels,
    eps,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = position % out_width - border
    row = position // out_width % out_height - border
    frame = position // (out_width * out_height) % out_frames - head
    clip = position // (out_width * out_height * out_frames)
    # Reflected about the outer rows and columns, repeated before the first and behind the last frame.
    column = tl.abs(column)
    column = tl.where(column >= width, 2 * width - 2 - column, column)
    row = tl.abs(row)
    row = tl.where(row >= height, 2 * height - 2 - row, row)
    frame = tl.minimum(tl.maximum(frame, 0), num_frames - 1)
    source = ((clip * num_frames + frame) * height + row) * width + column
    channel = tl.arange(0, CHANNELS)
    is_inside = (position < num_positions)[:, None] & (channel < channels)[None, :]
    value = tl.load(x_pointer + source[:, None] * channels + channel[None, :], mask=is_inside, other=0.0)
    value = value.to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, axis=1) / channels + eps)[:, None]
    value = value * tl.sigmoid(value)
    place = position[:, None] * channels + channel[None, :]
    tl.store(out_pointer + place, value.to(out_pointer.dtype.element_ty), mask=is_inside)


def norm_silu_pad(x: Tensor, eps: float, frames: tuple[int, int], border: int) -> Tensor:
    """silu(x / rms over channels), with outer frames repeated and ``border`` rows and columns reflected.

    Args:
        x: (B, C, F, H, W); copied if its channels are not last in memory.
        eps: added to the mean square.
        frames: repeated before the first and behind the last.
        border: 0 or 1, rows and columns on each side.

    Returns:
        (B, C, F + sum(frames), H + 2 border, W + 2 border), channels last.
    """
    x = x.contiguous(memory_format=CHANNELS_LAST)
    batch, channels, num_frames, height, width = x.shape
    sizes = (num_frames + sum(frames), height + 2 * border, width + 2 * border)
    out = torch.empty((batch, channels, *sizes), dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST)
    num_positions = out.numel() // channels
    block = triton.next_power_of_2(channels)
    rows = max(1, _NUMBERS // block)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _kernel[(triton.cdiv(num_positions, rows),)](  # pyright: ignore[reportIndexIssue]
            x,
            out,
            num_positions,
            num_frames,
            height,
            width,
            *sizes,
            frames[0],
            border,
            channels,
            eps,
            ROWS=rows,
            CHANNELS=block,
        )
    return out
