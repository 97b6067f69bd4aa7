"""What will become of each video, by its record, its header and the rules: nothing is decoded for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from sana_train.data.preparation.captions import choose_caption, given_motion
from sana_train.data.preparation.clips import motion_problem
from sana_train.data.preparation.cutting import num_frames_between, window_heads
from sana_train.data.preparation.rules import PrepareRules
from sana_train.data.preparation.sources import Reject, Source
from sana_train.data.preparation.survey import Facts
from sana_train.data.staging import shard_path
from sana_train.utils.files import sha256_bytes

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


@dataclass(frozen=True)
class Video:
    """A video that is going to be cut.

    Attributes:
        num_clips: by its header; scenes, motion and damage may leave fewer.
    """

    source: Source
    facts: Facts
    num_clips: int


@dataclass(frozen=True)
class Shard:
    """Videos whose clips go into one tar."""

    split: Split
    number: int
    videos: tuple[Video, ...]

    def tar(self, folder: Path) -> Path:
        return shard_path(folder / self.split, self.number)

    @property
    def num_clips(self) -> int:
        return sum(video.num_clips for video in self.videos)


@dataclass(frozen=True)
class Plan:
    """Shards to write, and what will be in none of them."""

    shards: tuple[Shard, ...]
    rejects: tuple[Reject, ...]

    def of(self, split: Split) -> list[Shard]:
        return [shard for shard in self.shards if shard.split == split]


def make_plan(sources: Sequence[Source], facts: Sequence[Facts], rules: PrepareRules) -> Plan:
    """A pure function of its arguments: shards hold the videos of a split in the order of ``sources``."""
    rejects: list[Reject] = []
    taken: dict[str, str] = {}  # hash -> the video that has it
    videos: dict[Split, list[Video]] = {split: [] for split in SPLITS}
    for source, fact in zip(sources, facts, strict=True):
        problem = source.problem or fact.problem or _misfit(source, fact, rules)
        if problem is None and fact.sha256 in taken:
            problem = f"the same video once more: {taken[fact.sha256]}"
        if problem is not None:
            rejects.append(Reject(source.name, problem))
            continue
        taken[fact.sha256] = source.name
        videos[split_of(fact.sha256, rules)].append(Video(source, fact, _num_clips(fact, rules)))
    shards = [shard for split in SPLITS for shard in _shards(split, videos[split], rules.clips_per_shard)]
    return Plan(tuple(shards), tuple(rejects))


def split_of(sha256: str, rules: PrepareRules) -> Split:
    """Where a video belongs, by the hash of its bytes alone: it stays there when others come or go."""
    drawn = int(sha256_bytes(f"{rules.heldout_seed} {sha256}".encode())[:8], 16) / 2**32
    return "heldout" if drawn < rules.heldout_share else "train"


def fingerprint(sources: Sequence[Source], facts: Sequence[Facts]) -> str:
    """Changes with any video's name or bytes and with anything known of one."""
    lines = [
        json.dumps([source.name, fact.sha256, source.record, source.problem], sort_keys=True, default=str)
        for source, fact in zip(sources, facts, strict=True)
    ]
    return sha256_bytes("\n".join(lines).encode())[:16]


def summary_of(sources: Sequence[Source], facts: Sequence[Facts]) -> dict[str, Any]:
    """What a record keeps of the videos."""
    return {"num_videos": len(sources), "fingerprint": fingerprint(sources, facts)}


def _misfit(source: Source, facts: Facts, rules: PrepareRules) -> str | None:
    """Why a video that is whole is not what the rules ask for."""
    if choose_caption(source.record, rules.caption_keys) is None:
        return f"no caption: none of {', '.join(rules.caption_keys)} is there with a text"
    if rules.motion_key is not None:
        score = given_motion(source.record, rules.motion_key)
        if score is None:
            return f"no motion score: no number at {rules.motion_key}"
        if (reason := motion_problem(score, rules)) is not None:
            return reason
    size = f"{facts.height_px}x{facts.width_px} px"
    if facts.height_px < rules.min_height_px or facts.width_px < rules.min_width_px:
        return (
            f"the video is too small: {size}, at least {rules.min_height_px}x{rules.min_width_px} px wanted"
        )
    if not rules.allow_upscaling and (facts.height_px < rules.height_px or facts.width_px < rules.width_px):
        return (
            f"the video is too small: {size}, the clips have {rules.height_px}x{rules.width_px} px, and "
            "allow_upscaling is false"
        )
    if facts.duration_s < rules.min_duration_s:
        return f"the video is too short: {facts.duration_s:.2f} s, min_duration_s={rules.min_duration_s:g}"
    if rules.fps is None and not facts.is_steady:
        return "its frame rate varies: give fps=<number> to have it resampled"
    if not _num_clips(facts, rules):
        fps = rules.fps or facts.fps
        return (
            f"the video is too short: {facts.duration_s:.2f} s, {rules.frames} frames at {fps:g} fps take "
            f"{rules.frames / fps if fps else 0:.2f} s"
        )
    return None


def _num_clips(facts: Facts, rules: PrepareRules) -> int:
    fps = rules.rate or Fraction(facts.fps)
    num_there = num_frames_between(Fraction(0), Fraction(facts.duration_s), fps)
    num_clips = len(window_heads(num_there, rules))
    return num_clips if rules.max_clips_per_video is None else min(num_clips, rules.max_clips_per_video)


def _shards(split: Split, videos: Sequence[Video], clips_per_shard: int) -> list[Shard]:
    """Videos in order, a new shard once the last has ``clips_per_shard`` clips."""
    groups: list[list[Video]] = []
    num_clips = clips_per_shard
    for video in videos:
        if num_clips >= clips_per_shard:
            groups.append([])
            num_clips = 0
        groups[-1].append(video)
        num_clips += video.num_clips
    return [Shard(split, number, tuple(group)) for number, group in enumerate(groups)]
