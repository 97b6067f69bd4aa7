"""What ``cli.precompute`` says before its work and after it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence

import torch

from sana_train.cli.config import LatentsConfig
from sana_train.cli.precompute_job import Encoders, Split, holes_of, pairings
from sana_train.cli.precompute_measure import seconds_per_clip
from sana_train.data.latents import latent_dtype
from sana_train.data.staging import partial_folder
from sana_train.data.tars import index_path
from sana_train.types import LatentSpec

_SHOWN_HOLES = 10


def sizes(specs: Mapping[str, LatentSpec], splits: Sequence[Split], dtype: str) -> str:
    """What will be written, and which frames every two autoencoders both code.

    Raises:
        ValueError: clips do not fit a latent grid, two spaces do not pair, or the disk is too small.
    """
    root = splits[0].root
    lines, total, total_left = [f"latents in {dtype} to {root}"], 0, 0
    for split in splits:
        num_mine, num_all = sum(map(len, split.mine.values())), len(split.clips)
        of_all = "" if num_mine == num_all else f" of {num_all:,}"
        num_shards = len(split.clips.folder.tars)
        lines.append(f"{split.name}: {num_mine:,}{of_all} clips, {len(split.mine)} of {num_shards} shards")
        lines.append(f"  {split.clips.transform}")
        pairs = pairings(specs, split.clips.video)
        for label, spec in specs.items():
            shape = spec.latent_shape(split.clips.video)
            clip_bytes = math.prod(shape) * latent_dtype(dtype).itemsize
            total += clip_bytes * num_mine
            total_left += clip_bytes * _num_left(split, label)
            lines.append(
                f"  {label:<13}  {' x '.join(map(str, shape)):<20}  {_size(clip_bytes * num_mine):>10}"
            )
        for (first, second), pairing in pairs.items():
            frames = f"{pairing.frames.start}..{pairing.frames.stop - 1}"
            lines.append(
                f"  {first} | {second}: both code frames {frames}, in {len(pairing.pairs)} stretches of "
                "whole latents"
            )
    free = shutil.disk_usage(next(each for each in (root, *root.absolute().parents) if each.exists())).free
    lines.append(
        f"{_size(total)} of latents exactly, {_size(total_left)} of it still to write, and text; "
        f"{_size(free)} are free there"
    )
    if total_left > free:
        raise ValueError("\n".join([*lines, "too little space; choose another paths.latents, or --split"]))
    return "\n".join([*lines, ""])


def _num_left(split: Split, label: str) -> int:
    """Clips of this task whose shard is not written yet."""
    folders = (split.target(label), partial_folder(split.target(label)))
    return sum(
        len(clips)
        for shard, clips in split.mine.items()
        if not any(index_path(folder / split.tar_name(shard)).exists() for folder in folders)
    )


def hours(
    encoders: Encoders,
    splits: Sequence[Split],
    latents: LatentsConfig,
    places: Sequence[torch.device],
    num_clips: int,
) -> str:
    """How long ``num_clips`` will take and what their text will need, by a probe on the first device."""
    split = next((split for split in splits if split.mine), None)
    if split is None:
        return "hours: none, no shard is this task's"
    probe = seconds_per_clip(encoders.encoder(places[0], split.clips.video, latents), split)
    seconds = probe.seconds_per_clip * num_clips / len(places)
    duration = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    text = _size(probe.text_bytes_per_clip * num_clips * len(encoders.autoencoders))
    kind = "GPU" if places[0].type == "cuda" else "CPU process"
    return (
        f"about {duration} and {text} of text for {num_clips:,} clips, by a probe of {probe.num_clips} on 1 "
        f"{kind} of {len(places)}"
    )


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
        target = split.target(labels[0])
        holes = holes_of(split, target if published[split.name, labels[0]] else partial_folder(target))
        if holes:
            lines.append(f"  {split.name}: {len(holes)} clips are holes of weight 0:")
            lines += [f"    {key}: {reason}" for key, reason in list(holes.items())[:_SHOWN_HOLES]]
        if len(holes) > _SHOWN_HOLES:
            lines.append(f"    and {len(holes) - _SHOWN_HOLES} more; the shards' *.index.json have all")
    return "\n".join([*lines, ""])


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"
