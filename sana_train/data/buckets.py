"""Clips of mixed aspects, sizes and lengths, each assigned to the bucket that fits it best.

A clip goes to the largest table of sizes that it fills without being enlarged, there to the size nearest
in aspect (log of height over width), and to the most frames that it has. What happens to it then is
``data/fitting.py``; which bucket a step takes is ``data/steps.py``.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sana_train.data.bucket_sizes import require_frames, size_tables
from sana_train.data.fitted import FittedClips, open_folder
from sana_train.data.fitting import ClipFit
from sana_train.data.joined import JoinedClips
from sana_train.data.shard_cache import CACHE_GIB
from sana_train.data.tars import TarFolder
from sana_train.data.video import kind_of
from sana_train.protocols import ClipSource
from sana_train.types import Batch, LatentSpec, VideoShape

logger = logging.getLogger(__name__)

_FACTS = ("frames", "height_px", "width_px", "fps")


@dataclass(frozen=True)
class Bucket:
    """Clips of one size.

    Attributes:
        name: ``<height>x<width>x<frames>``.
        video: the size.
        num_tokens: latent positions of a clip.
        num_clips: assigned to it.
        kept_share: of the pictures' area, what the crops leave, on average.
    """

    name: str
    video: VideoShape
    num_tokens: int
    num_clips: int
    kept_share: float

    @property
    def is_image(self) -> bool:
        return self.video.frames == 1


class BucketClips(JoinedClips):
    """A ``ClipSource`` of clips in buckets, decoded from WebDataset shards; a batch is of one bucket.

    What fits no bucket is left out, counted by reason in ``dropped`` and logged; a clip that proves damaged
    only when it is decoded is a hole of weight 0, as anywhere.

    Args:
        path: the shards, in the notation of ``data/locations.py``.
        resolutions: which picture sizes; see ``data/bucket_sizes.py``.
        frames: numbers of frames to choose from; 1 makes images of the clips that have no more.
        latent_spec: of the autoencoder, into whose latents every bucket must divide.
        fps: rate of the frames taken; None takes the frames of each file as they come.
        image_path: shards whose clips are images: the first frame of each is taken.
        image_every: of so many steps, the last is of images; null where there are none, or nothing else.
        cache, cache_gib: as of ``ShardClips``.
        max_new_holes: as of ``ShardClips``, for each bucket by itself.

    Raises:
        ValueError: sizes or frames that do not fit the autoencoder, no clip that fits a bucket, or images
            without an interval.
        DataLossError: shards that lie elsewhere cannot be reached.
    """

    def __init__(
        self,
        path: str | list[str],
        resolutions: list[str],
        frames: list[int],
        latent_spec: LatentSpec,
        fps: float | None = None,
        image_path: str | list[str] | None = None,
        image_every: int | None = None,
        cache: str | None = None,
        cache_gib: float = CACHE_GIB,
        max_new_holes: int | None = None,
    ) -> None:
        self.image_every, self.max_new_holes = image_every, max_new_holes
        tables = size_tables(resolutions, latent_spec)
        if not frames:
            raise ValueError("a bucket has at least 1 frame, got frames=[]; give numbers such as [81]")
        if image_path is not None and 1 in frames:
            raise ValueError("images come from image_path or from clips of 1 frame in path, not both")
        for count in {*frames, *([] if image_path is None else [1])}:
            require_frames(count, latent_spec)
        self.dropped: dict[str, int] = {}
        self.num_read = 0
        members: dict[str, ClipSource] = {}
        self.buckets: list[Bucket] = []
        for source, lengths in ((path, frames), (image_path, [1])):
            if source is None:
                continue
            folder = open_folder(source, cache, cache_gib)
            for fit, clips in self._assigned(folder, tables, lengths, fps).items():
                video = fit.video
                name = f"{video.height_px}x{video.width_px}x{video.frames}"
                members[name] = clips
                shape = latent_spec.latent_shape(video)
                self.buckets.append(Bucket(name, video, math.prod(shape[1:]), len(clips), _kept(clips)))
        if not members:
            reasons = "; ".join(f"{count} because {kind}" for kind, count in self.dropped.items())
            raise ValueError(
                f"none of the {self.num_read} clips fits a bucket of resolutions={resolutions}, "
                f"frames={frames}: {reasons}. See what is in them with `python -m "
                f"sana_train.cli.validate_data {path}`"
            )
        super().__init__(members)
        self._check_images()

    def _assigned(
        self,
        folder: TarFolder,
        tables: Sequence[Sequence[tuple[int, int]]],
        frames: Sequence[int],
        fps: float | None,
    ) -> dict[ClipFit, FittedClips]:
        """The folder's clips by what is done to them, in the order of the tables."""
        picked: dict[ClipFit, list[int]] = {}
        dropped: Counter[str] = Counter()

        @lru_cache(2**16)  # of a million clips most are of a few sizes
        def assign(*values: float) -> ClipFit | str:
            return nearest(dict(zip(_FACTS, values, strict=True)), tables, frames, fps)

        for index, sample in enumerate(folder.samples):
            facts = sample.facts
            found = facts["problem"] or assign(*(facts[name] for name in _FACTS))
            if isinstance(found, ClipFit):
                picked.setdefault(found, []).append(index)
                continue
            if not dropped[kind_of(found)]:
                logger.warning("clip %s fits no bucket, the first of its kind: %s", sample.key, found)
            dropped[kind_of(found)] += 1
        self.num_read += len(folder)
        for kind, count in dropped.most_common():
            self.dropped[kind] = self.dropped.get(kind, 0) + count
        order = {size: place for place, size in enumerate(size for table in tables for size in table)}

        def place(fit: ClipFit) -> tuple[int, int]:
            return order[fit.video.height_px, fit.video.width_px], -fit.video.frames

        return {
            fit: FittedClips.of_samples(folder, picked[fit], fit, self.max_new_holes)
            for fit in sorted(picked, key=place)
        }

    def _check_images(self) -> None:
        kinds = {bucket.is_image for bucket in self.buckets}
        if self.image_every is None and len(kinds) == 2:
            raise ValueError(
                "there are images (clips of 1 frame) and videos; say in image_every after how many "
                "steps one of images comes, such as 4"
            )
        if self.image_every is not None and (self.image_every < 2 or len(kinds) == 1):
            found = "only images" if kinds == {True} else "no images" if kinds == {False} else "both"
            raise ValueError(
                f"image_every={self.image_every}: expected at least 2, with images and videos to "
                f"take turns; found {found}. Leave it out where all clips are of one kind"
            )

    def batch(self, indices: Sequence[int]) -> Batch:
        """The clips of ``indices``, all of one bucket; holes have weight 0.

        Raises:
            ValueError: they are of several buckets, which have no common shape.
        """
        first, last = self.member_of(min(indices)), self.member_of(max(indices))
        if first != last:
            raise ValueError(
                f"clips of the buckets {self.buckets[first].name} and {self.buckets[last].name} were asked "
                "for in one batch; a batch is of one bucket"
            )
        return super().batch(indices)


def nearest(
    facts: Mapping[str, Any],
    tables: Sequence[Sequence[tuple[int, int]]],
    frames: Sequence[int],
    fps: float | None,
) -> ClipFit | str:
    """The fit of a clip's bucket, or why it has none.

    Args:
        facts: the clip's frames, height_px, width_px and fps.
        tables: sizes (height_px, width_px); of each the one nearest in aspect is tried, the largest first.
        frames: numbers of frames; the most that the clip has are taken.
        fps: rate of the frames taken.
    """
    aspect = math.log(facts["height_px"] / facts["width_px"])
    sizes = [min(table, key=lambda size: abs(aspect - math.log(size[0] / size[1]))) for table in tables]
    problem = ""
    for height_px, width_px in sorted(sizes, key=math.prod, reverse=True):
        for count in sorted(frames, reverse=True):
            fit = ClipFit(VideoShape(count, height_px, width_px), fps)
            problem = fit.problem(facts)
            if problem is None:
                return fit
    return problem


def _kept(clips: FittedClips) -> float:
    facts = [sample.facts for sample in clips.folder.samples]
    return sum(clips.fit.kept_share(f["height_px"], f["width_px"]) for f in facts) / len(facts)
