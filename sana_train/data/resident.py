"""Encoded clips held as tensors on one device: a batch is a gather, with no work per sample.

Legend: N clips, B batch, C channels, T/H/W latent grid, S text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sana_train.data.progress import ClipProgress
from sana_train.protocols import Autoencoder, ClipSource, TextEncoder
from sana_train.types import Batch, LatentSpec

# Pixels read at once: 321 clips of 17 frames at 128 px. In pieces of 16 their scenes take 8 times as long.
_READ_AHEAD_BYTES = 2**30


class RaggedText:
    """Encoded captions without their padding.

    Args:
        tokens: (sum of lengths, D).
        lengths: (N,) int64 tokens per caption.
        max_tokens: S, the length captions are padded to when they are read.
    """

    def __init__(self, tokens: Tensor, lengths: Tensor, max_tokens: int) -> None:
        if int(lengths.sum()) != tokens.shape[0]:
            raise ValueError(f"{int(lengths.sum())} tokens expected from the lengths, got {tokens.shape[0]}")
        self.tokens = torch.cat([tokens, tokens.new_zeros(1, tokens.shape[1])])  # last row: the padding
        self.lengths = lengths.to(tokens.device)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.positions = torch.arange(max_tokens, device=tokens.device)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) -> context (B, S, D) float32 padded with zeros, mask (B, S) bool."""
        mask = self.positions < self.lengths[index, None]  # (B, S)
        rows = torch.where(mask, self.starts[index, None] + self.positions, self.tokens.shape[0] - 1)
        return self.tokens[rows].float(), mask


class ResidentClips:
    """A ``ClipSource`` of raw latents and encoded captions in memory.

    Args:
        latents: (N, C, T, H, W) raw, any float dtype; batches are float32.
        text: the N encoded captions.
        captions: the N captions themselves.
        attributes: int64 (N,) or (N, K) per name.
        weight: (N,) float32, 0 for a hole.
        spec: geometry of the latents.
    """

    def __init__(
        self,
        latents: Tensor,
        text: RaggedText,
        captions: Sequence[str],
        attributes: Mapping[str, Tensor],
        weight: Tensor,
        spec: LatentSpec,
    ) -> None:
        device = latents.device
        if latents.shape[1] != spec.channels:
            raise ValueError(f"latents of {latents.shape[1]} channels do not fit {spec}")
        self.latents = latents
        self.text = text
        self.captions = tuple(captions)
        self.attributes = {name: value.to(device) for name, value in attributes.items()}
        self.weight = weight.to(device)
        self.spec = spec
        self.lies_in: list[range] = []  # the clip ids of each shard that they came from; none: from no shards

    def __len__(self) -> int:
        return self.latents.shape[0]

    def shards(self) -> list[range]:
        """The clip ids of each shard that they came from."""
        return self.lies_in

    @property
    def device(self) -> torch.device:
        return self.latents.device

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """The clips of ``indices``; fields are new tensors on the source's device."""
        on_host = indices.tolist() if isinstance(indices, Tensor) else list(indices)
        index = torch.as_tensor(on_host, dtype=torch.int64)
        index = index.to(self.device, non_blocking=True)
        context, mask = self.text.gather(index)
        return Batch(
            index=index,
            ordinals=index,
            weight=self.weight[index],
            captions=tuple(self.captions[i] for i in on_host),
            latents=self.latents.index_select(0, index).float(),
            context=context,
            context_mask=mask,
            attributes={name: value[index] for name, value in self.attributes.items()},
        )


@torch.no_grad()
def encode_resident(
    source: ClipSource,
    autoencoders: Mapping[str, Autoencoder],
    text_encoder: TextEncoder,
    device: torch.device | str,
    batch_size: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, ResidentClips]:
    """Encode every clip of ``source`` once, by each autoencoder; nothing touches the disk.

    The encoders must already be on ``device``. The sources returned share captions, text and attributes.

    Args:
        autoencoders: name -> frozen autoencoder, e.g. ``{"source": dcae_v, "target": ltx2}``.
        batch_size: clips encoded at a time. They are read in larger pieces of 1 GiB of pixels at most, as a
            source that renders is quicker with many at once.
        dtype: of the latents in memory; batches come as float32.
    """
    if not len(source):
        raise ValueError(f"{type(source).__name__} holds no clips; there is nothing to encode")
    num_clips, ahead = len(source), _clips_ahead(source, batch_size)
    encoded = _Encoded(num_clips, autoencoders, text_encoder, torch.device(device), dtype)
    with ClipProgress("encoding clips", num_clips) as progress:
        for start in range(0, num_clips, ahead):
            clips = range(start, min(start + ahead, num_clips))
            # Read in the call, so that no name keeps this piece in memory while the next one is read.
            encoded.add(clips, source.batch(clips).to(device), batch_size, progress)
    return encoded.sources()


def _clips_ahead(source: ClipSource, batch_size: int) -> int:
    """The multiple of ``batch_size`` clips that is read at once."""
    video = source.batch([0]).video
    if video is None:
        raise ValueError(f"{type(source).__name__} gives no pixels; encoding needs Batch.video")
    return batch_size * max(1, _READ_AHEAD_BYTES // (video.nbytes * batch_size))


class _Encoded:
    """What is encoded so far of ``num_clips`` clips, on one device."""

    def __init__(
        self,
        num_clips: int,
        autoencoders: Mapping[str, Autoencoder],
        text_encoder: TextEncoder,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.num_clips, self.device, self.dtype = num_clips, device, dtype
        self.autoencoders, self.text_encoder = autoencoders, text_encoder
        self.latents: dict[str, Tensor] = {}
        self.attributes: dict[str, Tensor] = {}
        self.weight = torch.zeros(num_clips, device=device)
        self.captions: list[str] = []
        self.tokens: list[Tensor] = []
        self.lengths: list[Tensor] = []

    def add(self, clips: range, batch: Batch, batch_size: int, progress: ClipProgress) -> None:
        """Encode the next ``clips``, ``batch_size`` at a time."""
        assert batch.video is not None
        self.weight[clips.start : clips.stop] = batch.weight
        for name, value in batch.attributes.items():
            if name not in self.attributes:
                self.attributes[name] = value.new_full((self.num_clips, *value.shape[1:]), -1)
            self.attributes[name][clips.start : clips.stop] = value
        for part in range(0, len(batch), batch_size):
            captions = batch.captions[part : part + batch_size]
            start = clips.start + part
            self._add_part(
                slice(start, start + len(captions)), batch.video[part : part + batch_size], captions
            )
            progress.advance(len(captions))

    def _add_part(self, clips: slice, video: Tensor, captions: Sequence[str]) -> None:
        for name, autoencoder in self.autoencoders.items():
            latents = autoencoder.encode(video)
            if name not in self.latents:
                shape = (self.num_clips, *latents.shape[1:])
                self.latents[name] = torch.empty(shape, dtype=self.dtype, device=self.device)
            self.latents[name][clips] = latents.to(self.dtype)
        context, mask = self.text_encoder.encode(captions)
        self.tokens.append(context.to(self.device)[mask.to(self.device)])
        self.lengths.append(mask.sum(1))
        self.captions.extend(captions)

    def sources(self) -> dict[str, ResidentClips]:
        """The clips by autoencoder, once all are added."""
        text = RaggedText(torch.cat(self.tokens), torch.cat(self.lengths), self.text_encoder.max_tokens)
        return {
            name: ResidentClips(
                self.latents[name], text, self.captions, self.attributes, self.weight, autoencoder.spec
            )
            for name, autoencoder in self.autoencoders.items()
        }
