"""How a run's data section reads its shards: what ``cli.validate_data`` holds clips against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sana_train.cli.config import RunConfig
from sana_train.cli.parts import Parts
from sana_train.cli.schema import TARGET
from sana_train.cli.targets import resolve_target
from sana_train.cli.vae_choice import skeleton
from sana_train.data.bucket_report import bucket_record, bucket_table
from sana_train.data.bucket_sizes import size_tables
from sana_train.data.buckets import BucketClips, nearest
from sana_train.data.fitted import FittedClips
from sana_train.data.fitting import ClipFit
from sana_train.data.locations import Shard
from sana_train.data.mixture import MixtureClips
from sana_train.data.shard_cache import ShardCache, cache_of
from sana_train.data.shards import ShardClips, inspect_clip
from sana_train.data.tars import TarFolder
from sana_train.data.validate import AssignedClips, Clips
from sana_train.types import VideoShape


@dataclass(frozen=True)
class Kind:
    """One path of a data section and how its clips are read.

    Attributes:
        key: of the configuration.
        path: the shards.
        cache: for shards that do not lie here.
        expected: what clips are held against, for the report.
        open_clips: opens readable tars as the run does.
        start: opens all that the run trains on and tells of it; raises ``ValueError`` where training would.
    """

    key: str
    path: str
    cache: ShardCache | None
    expected: str
    open_clips: Callable[[Sequence[Shard]], Clips]
    start: Callable[[], str] | None = None


def run_kinds(config: RunConfig, split: str) -> list[Kind]:
    """The paths of ``train`` or ``heldout``.

    Raises:
        ValueError: a section that renders its clips, or clips that the autoencoder cannot take.
    """
    return _kinds(config, f"data.{split}", getattr(config.data, split), split)


def _kinds(config: RunConfig, key: str, node: Mapping[str, Any], split: str) -> list[Kind]:
    target = resolve_target(node[TARGET])
    if target is MixtureClips:
        sources = node["sources"].items()
        return [
            each
            for name, source in sources
            for each in _kinds(config, f"{key}.sources.{name}", source, split)
        ]
    if target is BucketClips:
        return _bucket_kinds(config, key, node, split)
    if target is not ShardClips and target is not FittedClips:
        raise ValueError(
            f"{key} is {node[TARGET]}, which renders its clips and needs no validation; choose "
            "data=shards, or give the shards to look at"
        )
    video = VideoShape(node["frames"], node["height_px"], node["width_px"])
    _require_latents(config, key, video)
    size = f"{video.frames} frames of {video.height_px}x{video.width_px} px"
    if target is ShardClips:
        opened: Callable[[Sequence[Shard]], Clips] = partial(_of_tars, video)
        return [Kind(key, node["path"], cache_of(node), f"clips, held against {size}", opened)]
    fit = ClipFit(video, node["fps"])
    expected = f"clips, cut and scaled to {size}"
    return [Kind(key, node["path"], cache_of(node), expected, partial(_fitted, fit))]


def _bucket_kinds(config: RunConfig, key: str, node: Mapping[str, Any], split: str) -> list[Kind]:
    if config.autoencoder is None:
        raise ValueError(f"{key}: buckets are sizes of an autoencoder; choose autoencoder=<option>")
    tables = size_tables(node["resolutions"], skeleton(config.autoencoder).spec)
    paths = {"path": node["frames"], "image_path": [1]}
    kinds = []
    for name, frames in paths.items():
        if node[name] is None:
            continue
        assign = partial(nearest, tables=tables, frames=frames, fps=node["fps"])
        lengths = " or ".join(map(str, frames))
        expected = f"clips, assigned to buckets of {', '.join(node['resolutions'])} and {lengths} frames"
        opened = partial(AssignedClips, assign=assign)
        kinds.append(Kind(f"{key}.{name}", node[name], cache_of(node), expected, opened))
    last = kinds.pop()
    start = partial(_start_buckets, config, split)
    return [*kinds, Kind(last.key, last.path, last.cache, last.expected, last.open_clips, start)]


def _start_buckets(config: RunConfig, split: str) -> str:
    clips = Parts(config, torch.device("cpu")).clips(split)
    assert isinstance(clips, BucketClips)
    return bucket_table(bucket_record(clips, config.training.global_batch, config.training.micro_batch))


def _require_latents(config: RunConfig, key: str, video: VideoShape) -> None:
    if config.autoencoder is None:
        return
    try:
        skeleton(config.autoencoder).spec.latent_shape(video)
    except ValueError as error:
        raise ValueError(f"{key} asks for clips that the autoencoder cannot take: {error}") from error


def _of_tars(video: VideoShape, tars: Sequence[Shard]) -> Clips:
    return ShardClips.of_tars(tars, video)


def _fitted(fit: ClipFit, tars: Sequence[Shard]) -> Clips:
    folder = TarFolder(tars, inspect_clip)
    return FittedClips.of_samples(folder, range(len(folder)), fit)
