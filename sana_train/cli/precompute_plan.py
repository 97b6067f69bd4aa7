"""What ``cli.precompute`` says before its work and after it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from sana_train.cli.config import LatentsConfig
from sana_train.cli.precompute_job import Encoders, Split, Work, holes_of, pairings
from sana_train.cli.precompute_measure import seconds_per_clip
from sana_train.cli.precompute_rounding import encode_exactly, rounding
from sana_train.data.encode_shards import ShardWork
from sana_train.data.latents import latent_dtype
from sana_train.data.staging import partial_folder
from sana_train.data.tars import index_path
from sana_train.types import LatentSpec

_SHOWN_HOLES = 10
_TOO_LITTLE = "too little space; choose another paths.latents, or --split"


def sizes(specs: Mapping[str, LatentSpec], splits: Sequence[Split], dtype: str) -> str:
    """What will be written, and which frames every two autoencoders both code.

    Raises:
        ValueError: clips do not fit a latent grid, two spaces do not pair, or the disk is too small.
    """
    root = splits[0].root
    lines, total, total_left = [f"latents in {dtype} to {root}"], 0, 0
    for split, unwritten in not_written(splits, list(specs)):
        num_mine, num_all = sum(map(len, split.mine.values())), len(split.clips)
        of_all = "" if num_mine == num_all else f" of {num_all:,}"
        num_shards = len(split.clips.folder.tars)
        lines.append(f"{split.name}: {num_mine:,}{of_all} clips, {len(split.mine)} of {num_shards} shards")
        lines.append(f"  {split.clips.transform}")
        pairs = pairings(specs, split.clips.video)
        for label, spec in specs.items():
            shape = spec.latent_shape(split.clips.video)
            clip_bytes = _latent_bytes(spec, split, dtype)
            total += clip_bytes * num_mine
            total_left += clip_bytes * sum(len(work.clips) for work in unwritten if label in work.targets)
            lines.append(
                f"  {label:<13}  {' x '.join(map(str, shape)):<20}  {_size(clip_bytes * num_mine):>10}"
            )
        for (first, second), pairing in pairs.items():
            frames = f"{pairing.frames.start}..{pairing.frames.stop - 1}"
            lines.append(
                f"  {first} | {second}: both code frames {frames}, in {len(pairing.pairs)} stretches of "
                "whole latents"
            )
    free = _free_bytes(root)
    lines.append(
        f"{_size(total)} of latents exactly, {_size(total_left)} of it still to write, and text; "
        f"{_size(free)} are free there"
    )
    if total_left > free:
        raise ValueError("\n".join([*lines, _TOO_LITTLE]))
    return "\n".join([*lines, ""])


def not_written(splits: Sequence[Split], labels: Sequence[str]) -> Work:
    """This task's shards that have no index yet: what there is to do, at a look without fingerprints."""

    def missing(split: Split, shard: int) -> dict[str, Path]:
        tars = {label: split.target(label) / split.tar_name(shard) for label in labels}
        return {
            label: tar
            for label, tar in tars.items()
            if not any(
                index_path(each / tar.name).exists() for each in (tar.parent, partial_folder(tar.parent))
            )
        }

    return [
        (
            split,
            [
                ShardWork(clips, tars)
                for shard, clips in split.mine.items()
                if (tars := missing(split, shard))
            ],
        )
        for split in splits
    ]


def hours(encoders: Encoders, work: Work, latents: LatentsConfig, places: Sequence[torch.device]) -> str:
    """What ``latents.dtype`` costs in accuracy, how long ``work`` will take, what its text will need.

    All by a probe on the first device.

    Raises:
        ValueError: the disk is too small for latents and text.
    """
    split = next((split for split, shards in work if shards), None)
    if split is None:
        return "hours: none, nothing is left of this task's shards"
    exact, line = None, ""
    if latents.dtype != "float32":
        try:
            exact = encode_exactly(encoders, split, places[0])
        except torch.OutOfMemoryError:
            line = f"{latents.dtype} against float32: unknown, the device is too small to encode in float32\n"
    encoder = encoders.encoder(places[0], split.clips.video, latents)
    if exact is not None:
        line = rounding(exact, encoder) + "\n"
    probe = seconds_per_clip(encoder, split)
    seconds = probe.seconds_per_clip * max_clips_of_a_process(work, len(places))
    duration = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    num_clips = sum(len(shard.clips) for _, shards in work for shard in shards)
    num_contexts = sum(len(shard.clips) * len(shard.targets) for _, shards in work for shard in shards)
    text_bytes = probe.text_bytes_per_clip * num_contexts
    kind = "GPU" if places[0].type == "cuda" else "CPU process"
    line += (
        f"about {duration} and {_size(text_bytes)} of text for {num_clips:,} clips, by a probe of "
        f"{probe.num_clips} on 1 {kind} of {len(places)}"
    )
    latent_bytes = sum(
        len(shard.clips) * _latent_bytes(encoders.autoencoders[label].spec, of, latents.dtype)
        for of, shards in work
        for shard in shards
        for label in shard.targets
    )
    needed, free = latent_bytes + text_bytes, _free_bytes(split.root)
    if needed > free:
        told = f"{_size(needed)} of latents and text to write, {_size(free)} are free there"
        raise ValueError("\n".join([line, told, _TOO_LITTLE]))
    return line


def max_clips_of_a_process(work: Work, num_processes: int) -> int:
    """Clips of the process that has most of them; whole shards are dealt out."""
    return max(
        sum(len(shard.clips) for _, shards in work for shard in shards[rank::num_processes])
        for rank in range(num_processes)
    )


def _latent_bytes(spec: LatentSpec, split: Split, dtype: str) -> int:
    """Of one clip."""
    return math.prod(spec.latent_shape(split.clips.video)) * latent_dtype(dtype).itemsize


def _free_bytes(root: Path) -> int:
    return shutil.disk_usage(next(each for each in (root, *root.absolute().parents) if each.exists())).free


def summary(
    splits: Sequence[Split], published: Mapping[tuple[str, str], bool], num_clips: int, took_s: float
) -> str:
    """What there is now, holes with their reasons."""
    rate = f", {num_clips / took_s:.2f} clips/s" if num_clips else ""
    lines = [f"encoded {num_clips:,} clips in {took_s:.0f} s{rate}, to {splits[0].root}"]
    for split in splits:
        labels = [label for name, label in published if name == split.name]
        for label in labels:
            state = "complete" if published[split.name, label] else "this task's part; others are missing"
            lines.append(f"  {split.name}/{label}: {state}")
        holes = _holes(split, labels[0])
        if holes:
            lines.append(f"  {split.name}: {len(holes)} clips are holes of weight 0:")
            lines += [f"    {key}: {reason}" for key, reason in list(holes.items())[:_SHOWN_HOLES]]
        if len(holes) > _SHOWN_HOLES:
            lines.append(f"    and {len(holes) - _SHOWN_HOLES} more; the shards' *.index.json have all")
    return "\n".join([*lines, ""])


def _holes(split: Split, label: str) -> dict[str, str]:
    target = split.target(label)
    scratch = partial_folder(target)
    try:
        return holes_of(split, scratch if scratch.exists() else target)
    except FileNotFoundError:  # another task has published it meanwhile
        return holes_of(split, target)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"
