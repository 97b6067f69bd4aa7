"""Latent shards as a source of clips: found, held against what a run needs, read."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from sana_train.data.holes import NewHoles, allowed_holes
from sana_train.data.latents import FORMAT, SPEC_NAME, inspect_latents, latent_dtype
from sana_train.data.locations import Shard, is_remote, list_shards
from sana_train.data.resident import RaggedText, ResidentClips
from sana_train.data.shard_cache import ShardCache
from sana_train.data.shards import HOLE_CAPTION, collate_attributes
from sana_train.data.shared_memory import batch_zeros
from sana_train.data.staging import difference_table, read_record
from sana_train.data.tars import TarFolder, TarSample, read_beside
from sana_train.data.video import BadClip
from sana_train.types import Batch, LatentSpec
from sana_train.utils.hashing import json_hash

logger = logging.getLogger(__name__)


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
        if record is None or record.get("format") != FORMAT:
            found = "no such file" if record is None else f"format {record.get('format')!r}"
            raise ValueError(f"{where} holds no latent shards: {SPEC_NAME}: {found}, expected {FORMAT!r}")
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
        latents = torch.zeros(count, *self.latent_shape, dtype=latent_dtype(self.record["dtype"]))
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
