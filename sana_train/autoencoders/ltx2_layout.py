"""diffusers' LTX-2 autoencoder with channels last in memory: its layers, exchanged for equal ones.

diffusers pads time by concatenating repeated frames, space by a second copy, and norms in four steps that
each write the tensor; paddings fall back to channels first, and a convolution turns its input and output
around. The layers here pad in one copy, norm in two readings and keep the layout. State-dict keys stay as
they are.

Legend: B batch, C channels, F frames, H/W rows/columns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sana_train.autoencoders.dcae_layers import averaging_shortcut, shuffle, unshuffle
from sana_train.autoencoders.layout import CHANNELS_LAST, channels_last_, convolve_by_runs, is_channels_last

MAX_CONV_ELEMENTS = 2**31 - 1  # cuDNN indexes with 32 bits; a 2K clip has more in the decoder's last block


class PaddedConv(nn.Module):
    """A 3x3x3 convolution that repeats the clip's outer frames.

    Args:
        conv: diffusers' convolution; its padding in space is ``zeros`` or ``reflect``.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        plain = (conv.kernel_size, conv.stride, conv.dilation, conv.groups)
        if plain != ((3, 3, 3), (1, 1, 1), (1, 1, 1), 1) or conv.padding_mode not in ("zeros", "reflect"):
            raise TypeError(f"{conv} is none of the convolutions of LTX-2; use_channels_last=false runs it")
        self.conv = conv

    @property
    def border(self) -> int:
        """Rows and columns that have to be reflected on each side; zeros the convolution adds itself."""
        return int(self.conv.padding_mode == "reflect")

    def forward(self, hidden_states: Tensor, causal: bool = True) -> Tensor:
        """(B, C, F, H, W) -> (B, C', F, H, W); causal: both repeated frames are put in front."""
        pad = reflected if self.border else repeated
        return self.convolve(pad(hidden_states, outer_frames(causal)))

    def convolve(self, padded: Tensor) -> Tensor:
        """(B, C, F + 2, H + 2 border, W + 2 border) -> (B, C', F, H, W)."""
        batch, channels, num_frames, height, width = padded.shape
        space = 1 - self.border

        def convolve(run: Tensor) -> Tensor:
            return F.conv3d(run, self.conv.weight, self.conv.bias, padding=(0, space, space))

        return convolve_by_runs(
            lambda clips, start, stop: padded[clips, :, start : stop + 2],
            convolve,
            (batch, num_frames - 2),
            max(channels, self.conv.out_channels) * height * width,
            MAX_CONV_ELEMENTS,
        )


def outer_frames(is_causal: bool) -> tuple[int, int]:
    """How often the first and the last frame are repeated for a kernel of three."""
    return (2, 0) if is_causal else (1, 1)


def repeated(x: Tensor, frames: tuple[int, int]) -> Tensor:
    """The first and last frame of (B, C, F, H, W) so many more times, in one copy of the same layout."""
    head, tail = frames
    if not head and not tail:
        return x
    return torch.cat([*[x[:, :, :1]] * head, x, *[x[:, :, -1:]] * tail], dim=2)


def reflected(x: Tensor, frames: tuple[int, int]) -> Tensor:
    """``repeated``, and one row and column more on each side, reflected: (B, C, F + 2, H + 2, W + 2)."""
    (head, tail), (batch, channels, num_frames, height, width) = frames, x.shape
    layout = CHANNELS_LAST if is_channels_last(x) else torch.contiguous_format
    shape = (batch, channels, head + num_frames + tail, height + 2, width + 2)
    padded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    inside = padded[:, :, head : head + num_frames]
    inside[:, :, :, 1:-1, 1:-1] = x
    inside[:, :, :, 1:-1, 0], inside[:, :, :, 1:-1, -1] = x[..., 1], x[..., -2]
    inside[:, :, :, 0], inside[:, :, :, -1] = inside[:, :, :, 2], inside[:, :, :, -3]
    padded[:, :, :head] = inside[:, :, :1]
    padded[:, :, head + num_frames :] = inside[:, :, -1:]
    return padded


class ChannelNorm(nn.Module):
    """x over its root mean square across channels, at each position."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        at_least = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=at_least)  # summed up in fp32
        return x * torch.rsqrt(length.square() / x.shape[1] + self.eps).to(x.dtype)


class FusedResnet(nn.Module):
    """Twice norm, SiLU and convolution, added to the input; what comes before a convolution is one kernel.

    On a CPU, and where gradients are wanted, the steps run one by one.

    Args:
        resnet: diffusers' block of equal widths, its layers exchanged.
    """

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.norm1: ChannelNorm = resnet.norm1
        self.norm2: ChannelNorm = resnet.norm2
        self.conv1: PaddedConv = resnet.conv1
        self.conv2: PaddedConv = resnet.conv2

    def forward(
        self, inputs: Tensor, temb: None = None, generator: None = None, causal: bool = True
    ) -> Tensor:
        """(B, C, F, H, W) -> the same shape; diffusers' other arguments are of other generations."""
        x = inputs
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            if x.is_cuda and not torch.is_grad_enabled():
                from sana_train.autoencoders.norm_kernel import norm_silu_pad  # needs Triton

                x = conv.convolve(norm_silu_pad(x, norm.eps, outer_frames(causal), conv.border))
            else:
                x = conv(F.silu(norm(x)), causal)
        return x + inputs


class Down(nn.Module):
    """Convolution and blocks to channels, beside the mean of grouped channels.

    Args:
        conv: gives the outputs of one block.
        stride: frames, rows and columns of a block.
        out_channels: behind the block.
    """

    def __init__(self, conv: PaddedConv, stride: tuple[int, int, int], out_channels: int) -> None:
        super().__init__()
        self.conv, self.stride, self.out_channels = conv, stride, out_channels

    def forward(self, hidden_states: Tensor, causal: bool = True) -> Tensor:
        time, space, _ = self.stride
        x = repeated(hidden_states, (time - 1, 0))  # the first frame is a block's last
        shortcut = averaging_shortcut(x, self.out_channels, time, space)
        return unshuffle(self.conv(x, causal), time, space) + shortcut


class Up(nn.Module):
    """Convolution and channels to blocks, less the frames before the first; all channels again beside it.

    Args:
        conv: gives the outputs of one block.
        stride: frames, rows and columns of a block.
        has_shortcut: whether the input, brought up by the same shuffle and repeated, is added.
    """

    def __init__(self, conv: PaddedConv, stride: tuple[int, int, int], has_shortcut: bool) -> None:
        super().__init__()
        self.conv, self.stride, self.has_shortcut = conv, stride, has_shortcut

    def forward(self, hidden_states: Tensor, causal: bool = True) -> Tensor:
        time, space, _ = self.stride
        x = shuffle(self.conv(hidden_states, causal), time, space)
        if self.has_shortcut:
            shortcut = shuffle(hidden_states, time, space)
            groups = x.unflatten(1, (-1, shortcut.shape[1]))  # (B, repeats, C, F, H, W)
            groups += shortcut.unsqueeze(1)
        return x[:, :, time - 1 :]


def exchange_layers_(vae: nn.Module, use_fused_norms: bool = False) -> None:
    """Put the layers above in the place of diffusers', with the same weights laid channels last.

    Args:
        vae: diffusers' autoencoder or a part of it.
        use_fused_norms: whether residual blocks are exchanged too.

    Raises:
        TypeError: a convolution that LTX-2 does not have.
    """
    channels_last_(vae)
    for name, child in vae.named_children():
        exchange_layers_(child, use_fused_norms)
        replacement = _equal_layer(child, use_fused_norms)
        if replacement is not None:
            setattr(vae, name, replacement.train(child.training))


def _equal_layer(layer: nn.Module, use_fused_norms: bool) -> nn.Module | None:
    """None for what stays; the parts of ``layer`` are exchanged already."""
    from diffusers.models.autoencoders import autoencoder_kl_ltx2 as ltx2  # an import of seconds

    if use_fused_norms and isinstance(layer, ltx2.LTX2VideoResnetBlock3d) and _is_plain(layer):
        return FusedResnet(layer)
    if isinstance(layer, ltx2.PerChannelRMSNorm):
        return ChannelNorm(layer.eps)
    if isinstance(layer, ltx2.LTX2VideoCausalConv3d):
        return PaddedConv(layer.conv)
    if isinstance(layer, ltx2.LTX2VideoDownsampler3d):
        time, rows, columns = layer.stride
        block = time * rows * columns
        return Down(layer.conv, layer.stride, layer.conv.conv.out_channels * block)  # type: ignore[arg-type]
    if isinstance(layer, ltx2.LTX2VideoUpsampler3d):
        return Up(layer.conv, layer.stride, layer.residual)  # type: ignore[arg-type]
    return None


def _is_plain(resnet: Any) -> bool:
    """Equal widths, no time, no noise, no dropout: every residual block of LTX-2.0."""
    additions = ("norm3", "conv_shortcut", "per_channel_scale1", "per_channel_scale2", "scale_shift_table")
    is_silu = isinstance(resnet.nonlinearity, nn.SiLU)
    return is_silu and resnet.dropout.p == 0.0 and all(getattr(resnet, name) is None for name in additions)
