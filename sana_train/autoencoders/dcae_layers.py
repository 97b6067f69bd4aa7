"""Layers of DCAE-V: chunk-causal convolution, post-normed blocks, parameter-free shortcuts.

Legend: B batch, n chunks, C channels, L frames of one chunk, H/W rows/columns. Activations stay
folded as (B*n, C, L, H, W) from end to end, so a convolution needs no reshape: only the last frame
of each chunk's predecessor. Attribute names follow the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sana_train.autoencoders.initialise import variance_preserving_
from sana_train.autoencoders.layout import convolve_by_runs, is_channels_last, like

# cuDNN indexes with 32 bits, and 40 frames of 720p exceed that at half resolution: 256 channels of
# 352x640 are 2.3e9 numbers. An eighth of it keeps cuDNN's work space, and what norms and activations
# hold, small beside the activations themselves; larger calls are not faster.
MAX_CONV_ELEMENTS = 2**28


@dataclass
class Chunks:
    """How clips are folded, and what streaming hands from one call to the next.

    Args:
        num: chunks per clip in the folded batch dimension.
        carry: None codes whole clips; a dict keeps each convolution's last input frame, so that
            successive calls with the same dict continue one stream.
    """

    num: int = 1
    carry: dict[int, Tensor] | None = None


def fold(x: Tensor, chunk_frames: int) -> Tensor:
    """(B, C, n*L, H, W) -> (B*n, C, L, H, W)."""
    return rearrange(x, "b c (n l) h w -> (b n) c l h w", l=chunk_frames)


def unfold(x: Tensor, num_chunks: int) -> Tensor:
    """Inverse of ``fold``."""
    return rearrange(x, "(b n) c l h w -> b c (n l) h w", n=num_chunks)


def pad_tail(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last frame of (B, C, T, H, W) up to a multiple of ``multiple``."""
    short = -x.shape[2] % multiple
    return x if short == 0 else torch.cat([x, x[:, :, -1:].expand(-1, -1, short, -1, -1)], dim=2)


def unshuffle(x: Tensor, time: int, space: int) -> Tensor:
    """Blocks of time x space x space to channels; order (channel, t, h, w), channel slowest."""
    sizes = {"r": time, "p": space, "q": space}
    if is_channels_last(x):
        return rearrange(x, "b c (t r) (h p) (w q) -> b t h w (c r p q)", **sizes).movedim(-1, 1)
    return rearrange(x, "b c (t r) (h p) (w q) -> b (c r p q) t h w", **sizes)


def shuffle(x: Tensor, time: int, space: int) -> Tensor:
    """Inverse of ``unshuffle``."""
    sizes = {"r": time, "p": space, "q": space}
    if is_channels_last(x):
        return rearrange(x, "b (c r p q) t h w -> b (t r) (h p) (w q) c", **sizes).movedim(-1, 1)
    return rearrange(x, "b (c r p q) t h w -> b c (t r) (h p) (w q)", **sizes)


def averaging_shortcut(x: Tensor, out_channels: int, time: int, space: int) -> Tensor:
    """Unshuffle, then the mean over groups of consecutive channels down to ``out_channels``."""
    x = unshuffle(x, time, space)
    if is_channels_last(x):
        return x.movedim(1, -1).unflatten(-1, (out_channels, -1)).mean(dim=-1).movedim(-1, 1)
    return x.unflatten(1, (out_channels, -1)).mean(dim=2)


def duplicating_shortcut(x: Tensor, out_channels: int, time: int, space: int) -> Tensor:
    """Repeat each channel in place until a shuffle gives ``out_channels``."""
    repeats = out_channels * time * space * space // x.shape[1]
    if is_channels_last(x):
        return shuffle(x.movedim(1, -1).repeat_interleave(repeats, dim=-1).movedim(-1, 1), time, space)
    return shuffle(x.repeat_interleave(repeats, dim=1), time, space)


class ChunkCausalConv3d(nn.Conv3d):
    """A 3x3x3 convolution that sees both ways inside a chunk and only back across chunks.

    Time is padded by the last input frame of the previous chunk (zeros before the first chunk) and
    by a zero frame behind; space by zeros.

    Args:
        block: consecutive output channels that a shuffle turns into one block of pixels; they start
            with one kernel (see ``variance_preserving_``).
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True, block: int = 1) -> None:
        self.block = block
        super().__init__(in_channels, out_channels, kernel_size=3, padding=(0, 1, 1), bias=bias)

    def reset_parameters(self) -> None:
        variance_preserving_(self, self.block)

    def _previous_frames(self, x: Tensor, chunks: Chunks) -> Tensor:
        """(B*n, C, 1, H, W): the frame before each chunk."""
        last = x[:, :, -1:].unflatten(0, (-1, chunks.num))  # (B, n, C, 1, H, W)
        first = torch.zeros_like(last[:, :1])
        if chunks.carry is not None:
            first = chunks.carry.get(id(self), first)
            chunks.carry[id(self)] = last[:, -1:].clone()  # a view would keep all of x alive
        return like(torch.cat([first, last[:, :-1]], dim=1).flatten(0, 1), x)

    def forward(
        self,
        x: Tensor,
        chunks: Chunks,
        then: Callable[[Tensor], Tensor] | None = None,
        add_to: Tensor | None = None,
    ) -> Tensor:
        """(B*n, C, L, H, W) -> (B*n, C', L, H, W).

        Args:
            x: folded clips.
            chunks: how they are folded.
            then: what is made of the result at each position by itself. It is done run by run, so that
                of a large tensor there is never a second one beside it.
            add_to: takes the result up in place.
        """
        before = self._previous_frames(x, chunks)
        num_frames = x.shape[2]

        def padded(clips: slice, start: int, stop: int) -> Tensor:
            inside = x[clips, :, max(0, start - 1) : stop + 1]
            head = [before[clips]] if start == 0 else []
            tail = [torch.zeros_like(before[clips])] if stop == num_frames else []
            return torch.cat([*head, inside, *tail], dim=2) if head or tail else inside

        def convolve(run: Tensor) -> Tensor:
            result = super(ChunkCausalConv3d, self).forward(run)
            return result if then is None else then(result)

        frame_elements = max(self.in_channels, self.out_channels) * x.shape[3] * x.shape[4]
        sizes = (x.shape[0], num_frames)
        return convolve_by_runs(padded, convolve, sizes, frame_elements, MAX_CONV_ELEMENTS, add_to)


class RMSNorm3d(nn.Module):
    """x / rms(x over channels) * weight + bias, per position."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        at_least = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=at_least)  # summed up in fp32
        scale = torch.rsqrt(length.square() / x.shape[1] + self.eps).to(x.dtype)
        weight, bias = (value.to(x.dtype).view(1, -1, 1, 1, 1) for value in (self.weight, self.bias))
        return torch.addcmul(bias, x * scale, weight)


class ConvLayer(nn.Module):
    """A convolution and, optionally, a norm behind it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        use_norm: bool = False,
        block: int = 1,
    ) -> None:
        super().__init__()
        self.conv = ChunkCausalConv3d(in_channels, out_channels, bias, block)
        self.norm = RMSNorm3d(out_channels) if use_norm else None

    def forward(self, x: Tensor, chunks: Chunks, add_to: Tensor | None = None) -> Tensor:
        return self.conv(x, chunks, self.norm, add_to)


class ConvUnshuffle(nn.Module):
    """Convolution, then blocks to channels."""

    def __init__(self, in_channels: int, out_channels: int, time: int, space: int) -> None:
        super().__init__()
        self.time, self.space = time, space
        self.conv = ConvLayer(in_channels, out_channels // (time * space * space))

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:
        return unshuffle(self.conv(x, chunks), self.time, self.space)


class ConvShuffle(nn.Module):
    """Convolution, then channels to blocks."""

    def __init__(self, in_channels: int, out_channels: int, time: int, space: int) -> None:
        super().__init__()
        self.time, self.space = time, space
        block = time * space * space
        self.conv = ConvLayer(in_channels, out_channels * block, block=block)

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:
        return shuffle(self.conv(x, chunks), self.time, self.space)


class TwoConvs(nn.Module):
    """The branch of a residual block: conv, SiLU, conv without bias, norm at the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(channels, channels)
        self.conv2 = ConvLayer(channels, channels, bias=False, use_norm=True)

    def forward(self, x: Tensor, chunks: Chunks, add_to: Tensor | None = None) -> Tensor:
        return self.conv2(self.conv1.conv(x, chunks, F.silu), chunks, add_to)


class ResBlock(nn.Module):
    """Identity plus branch, with nothing after the sum. Without gradients the sum takes its input's place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = TwoConvs(channels)

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:
        if torch.is_grad_enabled():
            return x + self.main(x, chunks)
        return self.main(x, chunks, add_to=x)


class DownBlock(nn.Module):
    """Strided down by unshuffling, beside a shortcut that averages channels."""

    def __init__(self, in_channels: int, out_channels: int, time: int, space: int) -> None:
        super().__init__()
        if (in_channels * time * space * space) % out_channels or out_channels % (time * space * space):
            raise ValueError(
                f"a {time}x{space}x{space} down block cannot average {in_channels} channels to "
                f"{out_channels}; take a width that is a multiple of {time * space * space} and divides "
                f"{in_channels * time * space * space}"
            )
        self.out_channels, self.time, self.space = out_channels, time, space
        self.main = ConvUnshuffle(in_channels, out_channels, time, space)

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:
        result = self.main(x, chunks)
        if torch.is_grad_enabled():
            return result + averaging_shortcut(x, self.out_channels, self.time, self.space)
        step = max(1, MAX_CONV_ELEMENTS // x[:, :, : self.time].numel())
        for start in range(0, result.shape[2], step):  # by runs of frames, as a convolution
            frames = x[:, :, start * self.time : (start + step) * self.time]
            place = result[:, :, start : start + step]
            place += averaging_shortcut(frames, self.out_channels, self.time, self.space)
        return result


class UpBlock(nn.Module):
    """Up by shuffling, beside a shortcut that duplicates channels."""

    def __init__(self, in_channels: int, out_channels: int, time: int, space: int) -> None:
        super().__init__()
        if (out_channels * time * space * space) % in_channels:
            raise ValueError(
                f"a {time}x{space}x{space} up block cannot duplicate {in_channels} channels to "
                f"{out_channels}; take an input width that divides {out_channels * time * space * space}"
            )
        self.out_channels, self.time, self.space = out_channels, time, space
        self.main = ConvShuffle(in_channels, out_channels, time, space)

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:
        result = self.main(x, chunks)
        step = max(1, MAX_CONV_ELEMENTS // result[:, :, : self.time].numel())
        for start in range(0, x.shape[2], step):  # by runs of frames, as a convolution
            frames = x[:, :, start : start + step]
            place = result[:, :, start * self.time : (start + step) * self.time]
            place += duplicating_shortcut(frames, self.out_channels, self.time, self.space)
        return result


class OpList(nn.Module):
    """Blocks in a row, under the key ``op_list``."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(blocks)


class HeadToPixels(nn.Module):
    """Norm, SiLU, convolution, shuffle to pixels: the decoder's end, without a shortcut.

    Without gradients the activation takes its input's place.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(
            [RMSNorm3d(channels), nn.SiLU(), ConvShuffle(channels, 3, time=1, space=2)]
        )

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:
        norm, activation, head = self.op_list
        if torch.is_grad_enabled():
            return head(activation(norm(x)), chunks)
        step = max(1, MAX_CONV_ELEMENTS // x[:, :, :1].numel())
        for frames in x.split(step, dim=2):
            frames.copy_(activation(norm(frames)))
        return head(x, chunks)
