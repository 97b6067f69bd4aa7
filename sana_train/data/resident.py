"""Encoded clips held as tensors on one device: a batch is a gather, with no work per sample.

Legend: N clips, B batch, C channels, T/H/W latent grid, S text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sana_train.data.progress import track_chunks
from sana_train.protocols import Autoencoder, ClipSource, TextEncoder
from sana_train.types import Batch, LatentSpec

_READ_AHEAD = 8


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

    def __len__(self) -> int:
        return self.latents.shape[0]

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
        batch_size: clips encoded at a time; they are read in larger pieces, which suits rendered clips.
        dtype: of the latents in memory; batches come as float32.
    """
    if not len(source):
        raise ValueError(f"{type(source).__name__} holds no clips; there is nothing to encode")
    num_clips = len(source)
    latents: dict[str, Tensor] = {}
    attributes: dict[str, Tensor] = {}
    weight = torch.zeros(num_clips, device=device)
    captions: list[str] = []
    tokens: list[Tensor] = []
    lengths: list[Tensor] = []
    for chunk in track_chunks(num_clips, batch_size, "encoding clips"):
        clips = slice(chunk.start, chunk.stop)
        batch = source.batch(chunk).to(device)
        if batch.video is None:
            raise ValueError(f"{type(source).__name__} gives no pixels; encoding needs Batch.video")
        for name, autoencoder in autoencoders.items():
            encoded = torch.cat([autoencoder.encode(part) for part in batch.video.split(batch_size)])
            if name not in latents:
                latents[name] = torch.empty(num_clips, *encoded.shape[1:], dtype=dtype, device=device)
            latents[name][clips] = encoded.to(dtype)
        context, mask = text_encoder.encode(batch.captions)
        tokens.append(context.to(device)[mask.to(device)])
        lengths.append(mask.sum(1))
        weight[clips] = batch.weight
        captions.extend(batch.captions)
        for name, value in batch.attributes.items():
            column = attributes.setdefault(
                name, torch.full((num_clips, *value.shape[1:]), -1, dtype=torch.int64, device=device)
            )
            column[clips] = value
    text = RaggedText(torch.cat(tokens), torch.cat(lengths), text_encoder.max_tokens)
    return {
        name: ResidentClips(latents[name], text, captions, attributes, weight, autoencoder.spec)
        for name, autoencoder in autoencoders.items()
    }
