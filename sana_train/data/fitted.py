"""Clips of any size in shards, each made to fit one size as it is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_train.data.fitting import ClipFit
from sana_train.data.locations import Shard, list_shards
from sana_train.data.shard_cache import CACHE_GIB, ShardCache
from sana_train.data.shards import ShardClips, inspect_clip, parse_caption
from sana_train.data.tars import TarFolder, TarSample
from sana_train.data.video import decode_frames
from sana_train.types import VideoShape
from sana_train.utils.hashing import json_hash


class SomeSamples:
    """Some of the samples of a ``TarFolder``, with ids of their own: what ``ShardClips`` needs of a folder.

    Args:
        folder: shared with others; its open files are, too.
        picked: ids in it, ascending.
    """

    def __init__(self, folder: TarFolder, picked: Sequence[int]) -> None:
        self.folder, self.picked = folder, list(picked)
        self.samples: list[TarSample] = [folder.samples[index] for index in self.picked]
        by_tar = [(tar, len(list(same))) for tar, same in groupby(map(folder.tar_of, self.picked))]
        self.tars = [tar for tar, _ in by_tar]
        stops = torch.tensor([count for _, count in by_tar]).cumsum(0).tolist()
        self._ranges = [range(stop - count, stop) for stop, (_, count) in zip(stops, by_tar)]
        self.fingerprint = json_hash([folder.fingerprint, self.picked])

    def __len__(self) -> int:
        return len(self.picked)

    def clips_of_tars(self) -> list[range]:
        """The ids of each tar's samples."""
        return self._ranges

    def tar_of(self, index: int) -> Shard:
        """The tar that holds sample ``index``."""
        return self.folder.tar_of(self.picked[index])

    def name_of(self, index: int) -> str:
        """Shard and key of sample ``index``, for messages."""
        return self.folder.name_of(self.picked[index])

    def read(self, index: int) -> dict[str, bytes]:
        """Extension -> bytes of sample ``index``."""
        return self.folder.read(self.picked[index])


class FittedClips(ShardClips):
    """Clips of any size as clips of one: scaled down, cut around the centre, at one rate.

    What is done to a clip is ``data/fitting.py``.

    Clips that would have to be enlarged, or are too short or too slow, are holes.

    Args:
        path: the shards, in the notation of ``data/locations.py``.
        frames: taken from the head of each clip.
        height_px: of the result.
        width_px: of the result.
        fps: of the result; None takes the frames of each file as they come.
        cache, cache_gib, max_new_holes: as of ``ShardClips``.

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
        fps: float | None = None,
        cache: str | None = None,
        cache_gib: float = CACHE_GIB,
        max_new_holes: int | None = None,
    ) -> None:
        self.fit = ClipFit(VideoShape(frames, height_px, width_px), fps)
        super().__init__(path, frames, height_px, width_px, cache, cache_gib, max_new_holes)

    @classmethod
    def of_samples(
        cls, folder: TarFolder, picked: Sequence[int], fit: ClipFit, max_new_holes: int | None = None
    ) -> FittedClips:
        """Some samples of a folder that is open already."""
        clips = cls.__new__(cls)
        clips.fit = fit
        some: Any = SomeSamples(folder, picked)  # all that is used of a folder
        clips._open(some, fit.video, max_new_holes)
        return clips

    def misfit(self, facts: Mapping[str, Any]) -> str | None:
        return self.fit.problem(facts)

    def fingerprint(self) -> str:
        """Changes with any byte of any shard and with what is done to the clips."""
        return f"{self.folder.fingerprint}-{json_hash(self.transform)}"

    @property
    def transform(self) -> str:
        """What is done to a clip between its file and an autoencoder."""
        return str(self.fit)

    def decode(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """(3, F, H, W) uint8 and the json of a clip, whatever ``holes`` say.

        Raises:
            BadClip: it cannot be used.
        """
        return decode_fitted(self.folder.read(index), self.folder.samples[index].facts, self.fit)


def decode_fitted(
    members: Mapping[str, bytes], facts: Mapping[str, Any], fit: ClipFit
) -> tuple[Tensor, dict[str, Any]]:
    """(3, F, H, W) uint8 and the json of a sample whose index has ``facts``.

    Raises:
        BadClip: it cannot be used.
    """
    video = fit.video
    pixels = torch.empty(3, video.frames, video.height_px, video.width_px, dtype=torch.uint8)
    for row, frame in enumerate(decode_frames(members["mp4"], fit.frame_numbers(facts["fps"]))):
        pixels[:, row] = fit.picture(frame)
    return pixels, parse_caption(members["json"])


def open_folder(path: str | list[str], cache: str | None, cache_gib: float) -> TarFolder:
    """The shards of captioned clips at ``path``, indexed; arguments as of ``ShardClips``."""
    shards = list_shards(path, None if cache is None else ShardCache(Path(cache), cache_gib))
    return TarFolder(shards, inspect_clip)
