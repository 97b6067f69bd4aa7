"""DCAE-V: a deep-compression video autoencoder of chunk-causal convolutions, no attention.

Legend: B batch, C latent channels, F frames, T/H/W latent grid. Space is halved by the input
unshuffle and by every stage but the last two; the last but one brings time down. State-dict keys are
those of the published checkpoints, plus the statistics buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.autoencoders.dcae_layers import (
    Chunks,
    ConvLayer,
    ConvUnshuffle,
    DownBlock,
    HeadToPixels,
    OpList,
    ResBlock,
    UpBlock,
    fold,
    pad_tail,
    unfold,
)
from sana_train.autoencoders.layout import CHANNELS_LAST, channels_last_
from sana_train.autoencoders.weights import load_weights, without_values
from sana_train.types import LatentSpec


class Encoder(nn.Module):
    """Stages 1..n: residual blocks, then down; stage 0 is empty, its work is the input unshuffle."""

    def __init__(self, latent_channels: int, widths: list[int], depths: list[int], stride_t: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.project_in = ConvUnshuffle(3, widths[0], time=1, space=2)
        stages: list[nn.Module] = [nn.ModuleList()]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks: list[nn.Module] = [ResBlock(width) for _ in range(depth)]
            if index < last - 1:
                blocks.append(DownBlock(width, widths[index + 1], time=1, space=2))
            elif index == last - 1:
                blocks.append(DownBlock(width, widths[last], time=stride_t, space=1))
            stages.append(OpList(blocks))
        self.stages = nn.ModuleList(stages)
        self.project_out = ConvLayer(widths[last], latent_channels)

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:
        """(B*n, 3, L, H, W) -> (B*n, C, L/st, H/sh, W/sw)."""
        x = self.project_in(x, chunks)
        for block in _blocks(self.stages[1:]):
            x = block(x, chunks)
        return self.project_out(x, chunks)


class Decoder(nn.Module):
    """The encoder's mirror: stored by stage index, run from the last stage to the first."""

    def __init__(self, latent_channels: int, widths: list[int], depths: list[int], stride_t: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.project_in = ConvLayer(latent_channels, widths[last])
        stages: list[nn.Module] = [nn.ModuleList()]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks: list[nn.Module] = [ResBlock(width) for _ in range(depth)]
            if index < last - 1:
                blocks.insert(0, UpBlock(widths[index + 1], width, time=1, space=2))
            elif index == last - 1:
                blocks.insert(0, UpBlock(widths[last], width, time=stride_t, space=1))
            stages.append(OpList(blocks))
        self.stages = nn.ModuleList(stages)
        self.project_out = HeadToPixels(widths[0])

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:
        """(B*n, C, L/st, H/sh, W/sw) -> (B*n, 3, L, H, W)."""
        x = self.project_in(x, chunks)
        for block in _blocks(reversed(self.stages[1:])):
            x = block(x, chunks)
        return self.project_out(x, chunks)


def _blocks(stages: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Every block in order of running; called by a stage, a block would keep that stage's input in memory."""
    for stage in stages:
        yield from stage.get_submodule("op_list").children()


class DCAEV(VideoAutoencoder):
    """DCAE-V (DC-AE-V) with widths, depths and chunk length from config.

    Args:
        latent_channels: 32 and 64 are published.
        widths: channels of stages 1..n; the spatial stride is 2 ** (n - 1).
        encoder_depths: residual blocks of stages 1..n.
        decoder_depths: the same for the decoder.
        chunk_frames: frames coded bidirectionally together; across chunks the code is causal.
        stride_t: frames per latent frame.
        skip_frames: frames at the head of a clip that are not coded.
        latent_scale: what multiplies raw latents to unit variance, where no statistics are stored.
        use_streaming: code chunk by chunk (same result, memory of one chunk).
        use_channels_last: compute with channels last in memory, which tensor cores read; results
            differ by rounding.
        weights: a folder of this project or a published ``.pt``; None for random weights.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(
        self,
        latent_channels: int,
        widths: list[int],
        encoder_depths: list[int],
        decoder_depths: list[int],
        chunk_frames: int = 40,
        stride_t: int = 4,
        skip_frames: int = 1,
        latent_scale: float = 1.0,
        use_streaming: bool = False,
        use_channels_last: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        _check_stages(widths, encoder_depths, decoder_depths)
        if chunk_frames % stride_t:
            raise ValueError(f"chunk_frames={chunk_frames} is not a multiple of stride_t={stride_t}")
        stride = 2 ** (len(widths) - 1)
        self.spec = LatentSpec(latent_channels, stride_t, stride, stride, "chunked", skip_frames)
        self.chunk_frames = chunk_frames
        self.settings = {"chunk_frames": chunk_frames}
        self.latent_scale = latent_scale
        self.use_streaming = use_streaming
        self.layout = CHANNELS_LAST if use_channels_last else torch.contiguous_format
        with without_values(weights is not None):
            self.encoder = Encoder(latent_channels, list(widths), list(encoder_depths), stride_t)
            self.decoder = Decoder(latent_channels, list(widths), list(decoder_depths), stride_t)
        if weights is not None:
            self.to_empty(device=torch.get_default_device())
        self.register_buffer("latents_mean", torch.zeros(latent_channels))
        self.register_buffer("latents_std", torch.full((latent_channels,), 1.0 / latent_scale))
        if use_channels_last:
            channels_last_(self)
        if weights is not None:
            load_weights(self, weights)

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> raw latents (B, C, ceil((F - skip) / st), H/sh, W/sw).

        A tail shorter than a chunk is padded by its last frame; what the padding gives is cut off.
        """
        _, num_latents, _, _ = self.check_clip(video)
        padded = pad_tail(self.reconstructed_frames(video), self.chunk_frames)
        return self._run(self.encoder, padded, self.chunk_frames)[:, :, :num_latents]

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Raw latents (B, C, T, H, W) -> (B, 3, st * T, sh * H, sw * W)."""
        self.check_latents(latents)
        chunk_latents = self.chunk_frames // self.spec.stride_t
        video = self._run(self.decoder, pad_tail(latents, chunk_latents), chunk_latents)
        return video[:, :, : latents.shape[2] * self.spec.stride_t]

    def _run(self, network: Callable[[Tensor, Chunks], Tensor], x: Tensor, chunk: int) -> Tensor:
        """Run over (B, C, n * chunk, H, W), at once or chunk by chunk."""
        num_chunks = x.shape[2] // chunk
        if not self.use_streaming:
            folded = fold(x, chunk).contiguous(memory_format=self.layout)
            return unfold(network(folded, Chunks(num_chunks)), num_chunks).contiguous()
        stream = Chunks(1, carry={})
        pieces = (piece.contiguous(memory_format=self.layout) for piece in x.split(chunk, dim=2))
        return torch.cat([network(piece, stream).contiguous() for piece in pieces], dim=2)

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self.latents_mean, self.latents_std

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and reset is not None:
                reset()
        self.latents_mean.zero_()
        self.latents_std.fill_(1.0 / self.latent_scale)


def _check_stages(widths: list[int], encoder_depths: list[int], decoder_depths: list[int]) -> None:
    lengths = {len(widths), len(encoder_depths), len(decoder_depths)}
    if len(lengths) != 1 or len(widths) < 3:
        raise ValueError(
            f"widths, encoder_depths and decoder_depths need one entry for each of 3 or more stages, got "
            f"{len(widths)}, {len(encoder_depths)} and {len(decoder_depths)}"
        )
    if widths[0] % 4:
        raise ValueError(
            f"the first width is unshuffled from pixels in blocks of 2x2, so a multiple of 4; got {widths[0]}"
        )
