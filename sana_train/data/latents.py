"""The one latent-shard format, and the source that reads it.

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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sana_train.data.holes import NewHoles, allowed_holes
from sana_train.data.locations import Shard, is_remote, list_shards
from sana_train.data.progress import ClipProgress
from sana_train.data.resident import RaggedText, ResidentClips
from sana_train.data.shard_cache import ShardCache
from sana_train.data.shards import HOLE_CAPTION, ShardClips, collate_attributes, parse_caption
from sana_train.data.shared_memory import batch_zeros
from sana_train.data.space import SPACE_NAME, class_name, describe_space
from sana_train.data.staging import (
    FixedSource,
    difference_table,
    read_record,
    shard_path,
    shard_ranges,
    staged_folder,
)
from sana_train.data.tars import TarFolder, TarSample, index_path, read_beside, write_tar
from sana_train.data.video import BadClip, decoder_version
from sana_train.protocols import Autoencoder, TextEncoder
from sana_train.types import Batch, LatentSpec
from sana_train.utils.files import write_json
from sana_train.utils.hashing import json_hash

logger = logging.getLogger(__name__)

SPEC_NAME = "spec.json"
_FORMAT = "sana_train/latents/1"
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
    return {"format": _FORMAT, **fingerprint, **layout}


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


def latent_problems(samples: Sequence[TarSample]) -> dict[int, str]:
    """Index -> reason of every hole; the shape that most latents have is right, of equally many the first."""
    shapes = Counter(tuple(s.facts["shape"]) for s in samples if s.facts["problem"] is None)
    usual = shapes.most_common(1)[0][0] if shapes else ()
    problems: dict[int, str] = {}
    for index, sample in enumerate(samples):
        if sample.facts["problem"] is not None:
            problems[index] = sample.facts["problem"]
        elif tuple(sample.facts["shape"]) != usual:
            found = tuple(sample.facts["shape"])
            problems[index] = f"the latents have another shape: {found}, in most clips it is {usual}"
    return problems


def find_latents(folder: Path, expected: Mapping[str, Any]) -> Path:
    """Of the latent shards in ``folder``, one folder for each autoencoder, those nearest to ``expected``.

    Raises:
        ValueError: there are none, or they are not finished.
    """
    records = {path.parent: read_record(path.parent, SPEC_NAME) for path in folder.glob(f"[!.]*/{SPEC_NAME}")}
    if not records:
        begun = sorted(path.parent.name for path in folder.glob(f".*.partial/{SPEC_NAME}"))
        state = f"only unfinished ones ({', '.join(begun)})" if begun else "none"
        raise ValueError(
            f"expected latent shards in {folder}, found {state}; make them with `python -m "
            "sana_train.cli.precompute` and this run's overrides, or choose another latents.mode"
        )

    def distance(path: Path) -> tuple[bool, int, str]:
        record = records[path] or {}
        num_other = sum(record.get(key) != value for key, value in expected.items())
        return record.get("autoencoder") != expected["autoencoder"], num_other, path.name

    return min(records, key=distance)


def require_same(path: object, record: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` naming every field in which the latents at ``path`` are not as expected."""
    found = {key: record.get(key) for key in expected}
    if found != expected:
        raise ValueError(
            f"the latents in {path} have fingerprint {json_hash(found)},\n"
            f"this run needs {json_hash(dict(expected))}:\n{difference_table(found, expected)}\n"
            "Go back to the configuration, weights or libraries that made them, or encode the clips again:\n"
            "`python -m sana_train.cli.precompute` with this run's overrides and another paths.latents"
        )


class LatentClips:
    """A ``ClipSource`` over latent shards, read sample by sample; ``resident`` loads them all.

    Args:
        path: a folder with ``spec.json``, or shards in the notation of ``data/locations.py`` with that file
            beside the first.
        expected: what the latents must have been made by; fields of ``latent_fingerprint``, all or some.
        cache: for shards that do not lie here.
        max_new_holes: as for ``ShardClips``.

    Raises:
        ValueError: no latent shards there, or made by something else.
        DataLossError: shards that lie elsewhere cannot be reached.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str],
        expected: Mapping[str, Any],
        cache: ShardCache | None = None,
        max_new_holes: int | None = None,
    ) -> None:
        shards, record = self._record(path, cache)
        where = path if isinstance(path, (str, Path)) else shards[0]
        if record is None or record.get("format") != _FORMAT:
            found = "no such file" if record is None else f"format {record.get('format')!r}"
            raise ValueError(f"{where} holds no latent shards: {SPEC_NAME}: {found}, expected {_FORMAT!r}")
        require_same(where, record, expected)
        self.record = record
        self.spec = LatentSpec(**record["latent_spec"])
        self.folder = TarFolder(shards, inspect_latents)
        if len(self.folder) != record["num_clips"]:
            raise ValueError(
                f"{where} holds {len(self.folder)} clips, its {SPEC_NAME} says {record['num_clips']}; "
                "a shard was lost: encode the clips again"
            )
        self.holes = latent_problems(self.folder.samples)
        first = next((index for index in range(len(self)) if index not in self.holes), None)
        if first is None:
            raise ValueError(
                f"none of the {len(self)} clips in {where} can be used; first: {self.holes[0]}. `python -m "
                f"sana_train.cli.validate_data {where}` tells of all; mend the clips and encode them again"
            )
        if self.holes:
            logger.warning(
                "%d of %d clips in %s are holes of weight 0; its *.index.json say which, the log of their "
                "encoding says why",
                len(self.holes),
                len(self),
                where,
            )
        self.latent_shape = tuple(self.folder.samples[first].facts["shape"])  # (C, T, H, W)
        limit = allowed_holes(len(self)) if max_new_holes is None else max_new_holes
        num_usable = len(self) - len(self.holes)
        self._new_holes = NewHoles(limit, num_usable, str(where), "latents.max_new_holes")

    @staticmethod
    def _record(
        path: str | Path | Sequence[str], cache: ShardCache | None
    ) -> tuple[list[Shard], dict[str, Any] | None]:
        """The shards, and what lies beside them as ``spec.json``."""
        if isinstance(path, (str, Path)) and not is_remote(str(path)) and Path(path).is_dir():
            record = read_record(Path(path), SPEC_NAME)
            return ([] if record is None else list_shards(path)), record
        shards = list_shards(path, cache)
        first = shards[0]
        if isinstance(first, Path):
            return shards, read_record(first.parent, SPEC_NAME)
        text = read_beside(first, SPEC_NAME)
        return shards, None if text is None else json.loads(text)

    def __len__(self) -> int:
        return len(self.folder)

    def shards(self) -> list[range]:
        """The clip ids of each shard."""
        return self.folder.clips_of_tars()

    def resident(self, device: torch.device | str = "cpu") -> ResidentClips:
        """All clips as tensors on ``device``, in the shards that they lie in here."""
        count, dim = len(self), self.record["text_dim"]
        latents = torch.zeros(count, *self.latent_shape, dtype=_DTYPES[self.record["dtype"]])
        contexts: list[Tensor] = []
        infos: list[dict[str, Any] | None] = []
        for index in range(count):
            members = self._read(index)
            if members is None:
                contexts.append(torch.zeros(1, dim))
                infos.append(None)
                continue
            tensors = load(members["safetensors"])
            latents[index] = tensors["latents"]
            contexts.append(tensors["context"])
            infos.append(json.loads(members["json"]))
        lengths = torch.tensor([len(context) for context in contexts])
        clips = ResidentClips(
            latents.to(device),
            RaggedText(torch.cat(contexts).to(device), lengths, self.record["max_tokens"]),
            [HOLE_CAPTION if info is None else info["caption"] for info in infos],
            collate_attributes([None if info is None else info["attributes"] for info in infos]),
            torch.tensor([0.0 if info is None else 1.0 for info in infos]),
            self.spec,
        )
        clips.lies_in = self.shards()
        return clips

    def batch(self, indices: Sequence[int]) -> Batch:
        """The clips of ``indices``; latents are float32, holes have weight 0."""
        count, max_tokens = len(indices), self.record["max_tokens"]
        latents = batch_zeros(count, *self.latent_shape)
        context = batch_zeros(count, max_tokens, self.record["text_dim"])
        mask = batch_zeros(count, max_tokens, dtype=torch.bool)
        infos: list[dict[str, Any] | None] = []
        for row, index in enumerate(indices):
            members = self._read(int(index))
            if members is None:
                mask[row, 0] = True  # one token: attention over none is NaN
                infos.append(None)
                continue
            tensors = load(members["safetensors"])
            num_tokens = len(tensors["context"])
            latents[row] = tensors["latents"]
            context[row, :num_tokens] = tensors["context"]
            mask[row, :num_tokens] = True
            infos.append(json.loads(members["json"]))
        index = torch.tensor(list(indices), dtype=torch.int64)
        return Batch(
            index=index,
            ordinals=index,
            weight=torch.tensor([0.0 if info is None else 1.0 for info in infos]),
            captions=tuple(HOLE_CAPTION if info is None else info["caption"] for info in infos),
            latents=latents,
            context=context,
            context_mask=mask,
            attributes=collate_attributes([None if info is None else info["attributes"] for info in infos]),
        )

    def _read(self, index: int) -> dict[str, bytes] | None:
        """The members of a clip, or None for a hole. What is read is what was indexed, and that is whole."""
        if index in self.holes:
            return None
        try:
            return self.folder.read(index)
        except BadClip as error:
            self.holes[index] = str(error)
            self._new_holes.add(index, self.folder.name_of(index), str(error))
            return None
