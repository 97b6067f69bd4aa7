"""The one latent-shard format, and how clips are encoded into it; ``data/latent_clips.py`` reads it.

A folder of WebDataset tars with ``spec.json``. A sample is ``key.safetensors`` with ``latents``
(C, T, H, W), raw as the autoencoder gives them, and ``context`` (S, D) without padding, and ``key.json``
with caption and attributes. A hole of the source stays a sample, with ``problem`` in its json and no
tensors, so that clip ids never shift.

``spec.json`` says what made the latents: autoencoder and text encoder with their fingerprints, LatentSpec
(the frame rule is in it), dtype, the clips' fingerprint, how they were decoded and cut. A cache is only ever
read by what made it. ``space.json`` describes the space, for runs without the autoencoder.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sana_train.data.progress import ClipProgress
from sana_train.data.shards import ShardClips, parse_caption
from sana_train.data.space import class_name, describe_space
from sana_train.data.staging import (
    FixedSource,
    shard_path,
    shard_ranges,
    staged_folder,
)
from sana_train.data.tars import index_path, write_tar
from sana_train.data.video import BadClip, decoder_version
from sana_train.protocols import Autoencoder, TextEncoder
from sana_train.types import SPACE_NAME, Batch
from sana_train.utils.files import write_json

logger = logging.getLogger(__name__)

SPEC_NAME = "spec.json"
FORMAT = "sana_train/latents/1"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def latent_fingerprint(
    source: FixedSource, autoencoder: Autoencoder, text_encoder: TextEncoder, dtype: str
) -> dict[str, Any]:
    """All that latents depend on, a field each; at true size its hashes take a while.

    Args:
        autoencoder: with the weights as they were loaded, before a cast to ``dtype``.
        dtype: of the latents on disk; ``encoding_dtype`` has that of the autoencoder's arithmetic.
    """
    return space_fields(autoencoder, dtype) | text_fields(text_encoder) | clip_fields(source)


def space_fields(autoencoder: Autoencoder, dtype: str) -> dict[str, Any]:
    """The part of ``latent_fingerprint`` that tells of the autoencoder."""
    return {
        "autoencoder": class_name(autoencoder).rpartition(".")[2],
        "autoencoder_fingerprint": autoencoder.fingerprint(),
        "latent_spec": autoencoder.spec.to_dict(),
        "dtype": dtype,
    }


def text_fields(text_encoder: TextEncoder) -> dict[str, Any]:
    """The part of ``latent_fingerprint`` that tells of the text encoder."""
    return {
        "text_encoder": type(text_encoder).__name__,
        "text_fingerprint": text_encoder.fingerprint(),
        "max_tokens": text_encoder.max_tokens,
        "text_dim": text_encoder.dim,
    }


def clip_fields(source: FixedSource) -> dict[str, Any]:
    """The part of ``latent_fingerprint`` that tells of the clips."""
    is_file = isinstance(source, ShardClips)
    return {
        "decoder": decoder_version() if is_file else "none, clips are rendered",
        "transform": source.transform if is_file else "none, clips are rendered",
        "clips_fingerprint": source.fingerprint(),
        "num_clips": len(source),
    }


def latent_record(fingerprint: Mapping[str, Any], **layout: int) -> dict[str, Any]:
    """The contents of ``spec.json``: the fingerprint and how the clips are laid out in shards."""
    return {"format": FORMAT, **fingerprint, **layout}


@torch.no_grad()
def precompute_latents(
    source: FixedSource,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder,
    out: Path,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    dtype: Literal["bfloat16", "float16", "float32"] = "float32",
    clips_per_shard: int = 256,
    description: str = "encoding clips",
) -> Path:
    """Encode every clip of ``source`` once into latent shards at ``out``; returns ``out``.

    If ``out`` already holds them nothing is done; an interrupted call goes on after its last complete
    shard, and ``out`` appears only when complete. The autoencoder must already be on ``device``.

    Args:
        dtype: of the latents; the context is always float32. The autoencoder works in ``encoding_dtype``.

    Raises:
        ValueError: ``out`` holds latents of other clips or encoders, or ``source`` gives no pixels.
    """
    latents_dtype = latent_dtype(dtype)
    fingerprint = latent_fingerprint(source, autoencoder, text_encoder, dtype)
    record = latent_record(fingerprint, clips_per_shard=clips_per_shard)
    with staged_folder(out, SPEC_NAME, record) as folder:
        if folder is None:
            return out
        write_json(folder / SPACE_NAME, describe_space(autoencoder, torch.device(device)))
        autoencoder = _in_dtype(autoencoder, encoding_dtype(dtype))
        with ClipProgress(description, len(source)) as progress:
            for shard, clips in enumerate(shard_ranges(len(source), clips_per_shard)):
                tar = shard_path(folder, shard)
                if index_path(tar).exists():
                    progress.advance(len(clips))
                    continue
                samples = (
                    sample
                    for start in range(clips.start, clips.stop, batch_size)
                    for sample in _encode(
                        source,
                        source.batch(range(start, min(start + batch_size, clips.stop))).to(device),
                        autoencoder,
                        text_encoder,
                        latents_dtype,
                        progress,
                    )
                )
                write_tar(tar, samples, inspect_latents)
    return out


def _encode(
    source: FixedSource,
    batch: Batch,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder,
    dtype: torch.dtype,
    progress: ClipProgress,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    if batch.video is None:
        raise ValueError("the source gives no pixels; encoding needs Batch.video")
    latents = autoencoder.encode(batch.video.to(working_dtype(autoencoder))).to(dtype).cpu()
    context, mask = (value.cpu() for value in text_encoder.encode(batch.captions))
    for row, index in enumerate(batch.index.tolist()):
        if isinstance(source, ShardClips):
            source.require_not_lost(index)
        info: dict[str, Any] = {
            "caption": batch.captions[row],
            "attributes": {name: value[row].tolist() for name, value in batch.attributes.items()},
            "problem": None if float(batch.weight[row]) else "a hole in the clips",
        }
        yield f"{index:08d}", latent_sample(info, latents[row], context[row][mask[row]])
    progress.advance(len(batch))


def latent_sample(info: Mapping[str, Any], latents: Tensor, context: Tensor) -> dict[str, bytes]:
    """Extension -> bytes of one sample; a hole, whose ``info`` has a problem, has no tensors.

    Args:
        info: caption, attributes, problem.
        latents: (C, T, H, W) raw.
        context: (S, D) without padding.

    Raises:
        ValueError: the latents do not fit into float16.
    """
    if latents.dtype == torch.float16 and info["problem"] is None and not latents.isfinite().all():
        raise ValueError(
            f'latents of "{info["caption"]}" go beyond float16, whose largest number is 65504; '
            "keep them as latents.dtype=bfloat16 or float32"
        )
    members: dict[str, bytes] = {}
    if info["problem"] is None:
        members["safetensors"] = save({"latents": latents.contiguous(), "context": context.contiguous()})
    members["json"] = json.dumps(info, sort_keys=True).encode()
    return members


def latent_dtype(name: str) -> torch.dtype:
    """Raises ``ValueError`` for a type that latents are not kept in."""
    if name not in _DTYPES:
        raise ValueError(f"latents are kept as {' or '.join(_DTYPES)}, got dtype={name!r}")
    return _DTYPES[name]


def encoding_dtype(name: str) -> torch.dtype:
    """What an autoencoder works in for latents of a type: the type itself, but float32 for float16.

    Half precision overflows inside autoencoders, and its 3 more bits are worth nothing after bfloat16's.
    """
    return torch.float32 if latent_dtype(name) == torch.float16 else latent_dtype(name)


def working_dtype(autoencoder: Autoencoder) -> torch.dtype:
    """What an autoencoder takes pixels in: the type of its weights."""
    if isinstance(autoencoder, nn.Module):
        return next((value.dtype for value in autoencoder.parameters()), torch.float32)
    return torch.float32


def _in_dtype(autoencoder: Autoencoder, dtype: torch.dtype) -> Autoencoder:
    """Itself, or a copy where its weights are of another type; the run may train against the original."""
    if not isinstance(autoencoder, nn.Module) or working_dtype(autoencoder) == dtype:
        return autoencoder
    return copy.deepcopy(autoencoder).to(dtype)  # type: ignore[return-value]


def inspect_latents(members: Mapping[str, bytes]) -> dict[str, Any]:
    """What the index keeps of a sample: the shapes of its tensors, and what makes it a hole.

    ``shape`` is (C, T, H, W) of the latents and ``num_tokens`` S of the context; a hole has neither.
    """
    facts: dict[str, Any] = {"shape": None, "num_tokens": None, "problem": None}
    try:
        if "json" not in members:
            raise BadClip("the sample has no .json")
        info = parse_caption(members["json"])
        if info.get("problem") is not None:
            raise BadClip(str(info["problem"]))
        if "safetensors" not in members:
            raise BadClip("the sample has no .safetensors")
        tensors = _parse_tensors(members["safetensors"])
    except BadClip as error:
        return {**facts, "problem": str(error)}
    return {
        **facts,
        "shape": list(tensors["latents"].shape),
        "num_tokens": len(tensors["context"]),
    }


def _parse_tensors(data: bytes) -> dict[str, Tensor]:
    """Raises ``BadClip`` unless ``data`` are latents (C, T, H, W) and context (S, D), S > 0, all finite."""
    if not data:
        raise BadClip("the .safetensors has 0 bytes")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise BadClip(f"the safetensors cannot be read, they may be truncated ({error})") from error
    shapes = {name: tuple(value.shape) for name, value in sorted(tensors.items())}
    if {name: len(shape) for name, shape in shapes.items()} != {"context": 2, "latents": 4}:
        raise BadClip(f"the tensors are not latents (C, T, H, W) and context (S, D): {shapes}")
    if not shapes["context"][0]:
        raise BadClip("the context has no tokens")
    for name, value in sorted(tensors.items()):
        if not value.isfinite().all():
            raise BadClip(f"not all numbers are finite: in {name}")
    return tensors
