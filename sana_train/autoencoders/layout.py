"""How 3D activations lie in memory, and convolutions of those too large for one call.

Legend: B batch, C channels, F frames, H/W rows/columns. Channels last means that the numbers of one
position are neighbours in memory: what tensor cores read, and what a norm over channels sums up.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CHANNELS_LAST = torch.channels_last_3d
HALO = 2  # frames that a kernel of three sees beyond each run of outputs


def is_channels_last(x: Tensor) -> bool:
    """Whether (B, C, F, H, W) lies with its channels last, and not also as usual."""
    return x.is_contiguous(memory_format=CHANNELS_LAST) and not x.is_contiguous()


def channels_last_(module: nn.Module) -> None:
    """Lay the 3D kernels of ``module`` with their channels last, in place; no value changes."""
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST)


def like(x: Tensor, other: Tensor) -> Tensor:
    """``x`` laid in memory as ``other`` is, copied only if it is not."""
    return x.contiguous(memory_format=CHANNELS_LAST if is_channels_last(other) else torch.contiguous_format)


def convolve_by_runs(
    padded: Callable[[slice, int, int], Tensor],
    convolve: Callable[[Tensor], Tensor],
    sizes: tuple[int, int],
    frame_elements: int,
    limit: int,
    add_to: Tensor | None = None,
) -> Tensor:
    """A convolution over time without strides, in one call or by runs of frames; the result is the same.

    cuDNN indexes a tensor with 32 bits, and its work space grows with it.

    Args:
        padded: (which clips, first frame, last + 1) -> their input, with ``HALO`` frames more.
        convolve: the convolution, unpadded in time, and what follows it at each position.
        sizes: clips and output frames.
        frame_elements: numbers in one frame of one clip, of input or output, whichever has more.
        limit: numbers that a tensor of one call may have; at the least a frame of one clip is convolved.
        add_to: takes the result up in place and is returned; a tensor less in memory.
    """
    num_clips, num_frames = sizes
    everything = slice(0, num_clips)
    if num_clips * (num_frames + HALO) * frame_elements <= limit:
        whole = convolve(padded(everything, 0, num_frames))
        return whole if add_to is None else add_to.add_(whole)
    step = max(1, limit // frame_elements - HALO)
    result = add_to
    for clip in range(num_clips):
        for start in range(0, num_frames, step):
            stop = min(start + step, num_frames)
            piece = convolve(padded(slice(clip, clip + 1), start, stop))
            if result is None:
                shape = (num_clips, piece.shape[1], num_frames, *piece.shape[3:])
                layout = CHANNELS_LAST if is_channels_last(piece) else torch.contiguous_format
                result = torch.empty(shape, dtype=piece.dtype, device=piece.device, memory_format=layout)
            place = result[clip : clip + 1, :, start:stop]
            place.copy_(piece) if add_to is None else place.add_(piece)
    assert result is not None
    return result
