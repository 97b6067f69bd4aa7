"""Captioned clips in WebDataset shards, by global index.

A sample is ``key.mp4`` and ``key.json`` with ``caption`` and, for procedural clips, ``attributes``: name ->
an integer or a list of integers, of one length in all clips.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_train.data.holes import DataLossError, NewHoles, allowed_holes
from sana_train.data.locations import Shard, list_shards
from sana_train.data.shard_cache import CACHE_GIB, ShardCache
from sana_train.data.shared_memory import batch_zeros
from sana_train.data.tars import LostClip, TarFolder
from sana_train.data.video import BadClip, decode_clip, kind_of, other_size, probe_clip, too_short
from sana_train.types import Batch, VideoShape

logger = logging.getLogger(__name__)

# What a hole is captioned with. Not empty: attention over no tokens is NaN, and 0 * NaN is NaN.
HOLE_CAPTION = "hole"
_LOGGED_HOLES = 20  # one by one at the start; a million clips of the wrong size are one mistake


def parse_caption(data: bytes) -> dict[str, Any]:
    """The sample's json.

    Raises:
        BadClip: not JSON, no caption in it, or attributes that are no integers.
    """
    if not data:
        raise BadClip("the .json has 0 bytes")
    try:
        record = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadClip(f"the json cannot be parsed ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
        raise BadClip("the json has no caption")
    if not record["caption"].strip():
        raise BadClip("the caption is empty")
    attributes = {} if record.get("attributes") is None else record["attributes"]
    if not isinstance(attributes, dict):
        raise BadClip(f"attributes are no object of names and integers: {_shorten(attributes)}")
    for name, value in attributes.items():
        if not all(_is_int64(number) for number in (value if isinstance(value, list) else [value])):
            raise BadClip(f"the attribute {name!r} is no integer or list of integers: {_shorten(value)}")
    return record


def _is_int64(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "..."


def attribute_sizes(record: Mapping[str, Any]) -> dict[str, int | None]:
    """Of a sample's parsed json: the length of each attribute that is a list, None for a single integer."""
    attributes = record.get("attributes") or {}
    return {name: len(value) if isinstance(value, list) else None for name, value in attributes.items()}


def inspect_clip(members: Mapping[str, bytes]) -> dict[str, Any]:
    """What the index keeps of a sample: the mp4's header, sizes of attributes, and what makes it a hole.

    The header's fields are missing where the mp4 has none that can be read.
    """
    facts: dict[str, Any] = {"attributes": {}, "problem": None}
    try:
        for extension in ("mp4", "json"):
            if extension not in members:
                raise BadClip(f"the sample has no .{extension}")
        facts |= asdict(probe_clip(members["mp4"]))
        facts["attributes"] = attribute_sizes(parse_caption(members["json"]))
    except BadClip as error:
        facts["problem"] = str(error)
    return facts


def collate_attributes(rows: Sequence[Mapping[str, int | list[int]] | None]) -> dict[str, Tensor]:
    """Columns of int64; -1 wherever a row does not have an attribute."""
    columns: dict[str, Tensor] = {}
    for row, attributes in enumerate(rows):
        for name, value in (attributes or {}).items():
            values = torch.tensor(value, dtype=torch.int64)
            if name not in columns:
                columns[name] = torch.full((len(rows), *values.shape), -1, dtype=torch.int64)
            columns[name][row] = values
    return columns


def usual_sizes(rows: Sequence[Mapping[str, int | None]]) -> dict[str, int | None]:
    """The size that most clips give each attribute; of equally frequent ones the first."""
    counts: dict[str, Counter[int | None]] = {}
    for row in rows:
        for name, size in row.items():
            counts.setdefault(name, Counter())[size] += 1
    return {name: counter.most_common(1)[0][0] for name, counter in counts.items()}


def _odd_attributes(facts: Mapping[str, Any], usual: Mapping[str, int | None]) -> str | None:
    """Why a clip's attributes do not fit those of the others."""
    for name, size in facts["attributes"].items():
        if size != usual[name]:
            here, there = ("an integer" if n is None else f"a list of {n}" for n in (size, usual[name]))
            return f"the attribute {name!r} is {here}, in most clips it is {there}"
    return None


class ShardClips:
    """A ``ClipSource`` that decodes clips from WebDataset shards.

    A clip that cannot be used keeps its index: its pixels are 0, its weight is 0, and it is reported
    once in the log and kept in ``holes``.

    Args:
        path: the shards, in the notation of ``data/locations.py``: a folder, a tar, a glob, braces, URLs,
            commands, or a list of these.
        frames: taken from the head of each clip.
        height_px: of every clip.
        width_px: of every clip.
        cache: folder for copies and indices of shards that do not lie here.
        cache_gib: of the copies; the least recently used go first.
        max_new_holes: clips that may turn out bad while they are read, counted over the loader workers of a
            rank (``data/holes.py``); one more ends the run. By default 1 % of the clips, at least 10.

    Raises:
        ValueError: no shards, a shard without samples, or not one usable clip.
        DataLossError: shards that lie elsewhere cannot be reached.
    """

    def __init__(
        self,
        path: str | list[str],
        frames: int,
        height_px: int,
        width_px: int,
        cache: str | None = None,
        cache_gib: float = CACHE_GIB,
        max_new_holes: int | None = None,
    ) -> None:
        shards = list_shards(path, None if cache is None else ShardCache(Path(cache), cache_gib))
        self._open(TarFolder(shards, inspect_clip), VideoShape(frames, height_px, width_px), max_new_holes)
        self.require_usable()
        if self.holes:
            logger.warning(
                "%d of %d clips in %s are holes of weight 0; sana_train.cli.validate_data tells of all",
                len(self.holes),
                len(self),
                path,
            )

    @classmethod
    def of_tars(cls, tars: Sequence[Shard], video: VideoShape) -> ShardClips:
        """The clips of ``tars`` in this order, be there one that can be used or not."""
        clips = cls.__new__(cls)
        clips._open(TarFolder(tars, inspect_clip), video, None)
        return clips

    def _open(self, folder: TarFolder, video: VideoShape, max_new_holes: int | None) -> None:
        self.folder, self.video = folder, video
        self.lost: set[int] = set()  # the holes that may come back; nothing lasting is made of them
        self.holes: dict[int, str] = {}
        facts = [sample.facts for sample in folder.samples]
        usual = usual_sizes([fact["attributes"] for fact in facts if fact["problem"] is None])
        for index, fact in enumerate(facts):
            problem = fact["problem"] or self.misfit(fact) or _odd_attributes(fact, usual)
            if problem is None:
                continue
            if len(self.holes) < _LOGGED_HOLES:
                logger.warning("clip %d (%s) is a hole: %s", index, folder.samples[index].key, problem)
            self.holes[index] = problem
        limit = allowed_holes(len(self)) if max_new_holes is None else max_new_holes
        self._new_holes = NewHoles(limit, len(self) - len(self.holes), self._where, "data.*.max_new_holes")

    def misfit(self, facts: Mapping[str, Any]) -> str | None:
        """Why a clip that is good by itself cannot be used at this size."""
        if (facts["height_px"], facts["width_px"]) != (self.video.height_px, self.video.width_px):
            return other_size(facts["height_px"], facts["width_px"], self.video)
        return too_short(facts["frames"], self.video) if facts["frames"] < self.video.frames else None

    def require_usable(self) -> None:
        """Raises ``ValueError`` if every clip is a hole, with each kind of reason."""
        if len(self.holes) < len(self):
            return
        kinds = Counter(kind_of(problem) for problem in self.holes.values())
        raise ValueError(
            f"none of the {len(self)} samples in {self._where} can be used: "
            + "; ".join(f"{count} because {kind}" for kind, count in kinds.most_common())
            + f"; first: {self.holes[min(self.holes)]}. See what is in them with `python -m "
            "sana_train.cli.validate_data` and this run's overrides, then set data.*.frames, height_px and "
            "width_px to what the clips have, or cut and scale the clips"
        )

    def __len__(self) -> int:
        return len(self.folder)

    def shards(self) -> list[range]:
        """The clip ids of each shard."""
        return self.folder.clips_of_tars()

    def require_not_lost(self, index: int) -> None:
        """Raises ``DataLossError`` for a clip that was lost while it was to be encoded for good."""
        if index in self.lost:
            raise DataLossError(
                f"{self.folder.name_of(index)}: {self.holes[index]}; latents of it would be a hole for ever. "
                "Bring the shard back as it was and run the same command again: finished shards are kept"
            )

    def fingerprint(self) -> str:
        """Changes with any byte of any shard and with the size of the clips."""
        return f"{self.folder.fingerprint}-{self.video.frames}x{self.video.height_px}x{self.video.width_px}"

    @property
    def transform(self) -> str:
        """What is done to a clip between its file and an autoencoder."""
        size = f"{self.video.height_px}x{self.video.width_px} px"
        return f"first {self.video.frames} frames, {size}, no crop, no scaling, the file's fps"

    @property
    def _where(self) -> str:
        """The shards, in a message."""
        first, num_more = self.folder.tars[0], len(self.folder.tars) - 1
        if isinstance(first, Path) and all(
            isinstance(t, Path) and t.parent == first.parent for t in self.folder.tars
        ):
            return str(first.parent)
        return f"{first} and {num_more} more shards" if num_more else str(first)

    def load(self, index: int) -> tuple[Tensor, dict[str, Any]] | None:
        """(3, F, H, W) uint8 and the json of a clip, or None for a hole, whose reason ``holes`` has then.

        Threads may call it at once; decoding leaves Python's lock.

        Raises:
            DataLossError: it is a new hole, and one too many.
        """
        if index in self.holes:
            return None
        try:
            return self.decode(index)
        except BadClip as error:
            self.holes[index] = str(error)
            if isinstance(error, LostClip):
                self.lost.add(index)
            self._new_holes.add(index, self.folder.name_of(index), str(error))
            return None

    def decode(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """(3, F, H, W) uint8 and the json of a clip, whatever ``holes`` say.

        Raises:
            BadClip: it cannot be used.
        """
        members = self.folder.read(index)
        return decode_clip(members["mp4"], self.video), parse_caption(members["json"])

    def batch(self, indices: Sequence[int]) -> Batch:
        """The clips of ``indices``; holes have weight 0."""
        loaded = [self.load(int(i)) for i in indices]
        video = batch_zeros(len(loaded), 3, self.video.frames, self.video.height_px, self.video.width_px)
        for row, clip in enumerate(loaded):
            if clip is not None:
                video[row].copy_(clip[0]).div_(127.5).sub_(1.0)  # to_float without its two copies
        index = torch.tensor(list(indices), dtype=torch.int64)
        return Batch(
            index=index,
            ordinals=index,
            weight=torch.tensor([0.0 if clip is None else 1.0 for clip in loaded]),
            captions=tuple(HOLE_CAPTION if clip is None else clip[1]["caption"] for clip in loaded),
            video=video,
            attributes=collate_attributes([None if c is None else c[1].get("attributes") for c in loaded]),
        )
