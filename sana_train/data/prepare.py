"""Render a procedural source to real mp4 + json shards, once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from sana_train.data.progress import ClipProgress
from sana_train.data.shards import inspect_clip
from sana_train.data.staging import FixedSource, shard_path, shard_ranges, staged_folder
from sana_train.data.tars import index_path, write_tar
from sana_train.data.video import encode_clip, to_uint8

RECORD_NAME = "dataset.json"
_RENDER_BATCH = 16


def render_shards(
    source: FixedSource,
    out: Path,
    *,
    fps: int = 8,
    crf: int = 4,
    clips_per_shard: int = 128,
    description: str = "rendering clips",
) -> Path:
    """Write every clip of ``source`` to ``out`` as H.264 mp4 + json; returns ``out``.

    The shards are a pure function of the source. If ``out`` already holds them nothing is done; an
    interrupted call goes on after its last complete shard, and ``out`` appears only when complete.

    Raises:
        ValueError: ``out`` holds other clips.
    """
    record = {
        "source": source.fingerprint(),
        "num_clips": len(source),
        "fps": fps,
        "crf": crf,
        "clips_per_shard": clips_per_shard,
    }
    with staged_folder(out, RECORD_NAME, record) as folder:
        if folder is None:
            return out
        encode = partial(encode_clip, fps=fps, crf=crf)
        # libx264 works outside of Python's lock, so threads are enough to use every core.
        with ClipProgress(description, len(source)) as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
            for shard, clips in enumerate(shard_ranges(len(source), clips_per_shard)):
                tar = shard_path(folder, shard)
                if not index_path(tar).exists():
                    write_tar(tar, _samples(source, clips, encode, pool, progress), inspect_clip)
                else:
                    progress.advance(len(clips))
    return out


def _samples(
    source: FixedSource, clips: range, encode: Any, pool: ThreadPoolExecutor, progress: ClipProgress
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for start in range(clips.start, clips.stop, _RENDER_BATCH):
        indices = range(start, min(start + _RENDER_BATCH, clips.stop))
        batch = source.batch(indices)
        if batch.video is None:
            raise ValueError(f"{type(source).__name__} gives no pixels to write")
        encoded = pool.map(encode, to_uint8(batch.video).cpu())
        for row, (index, mp4) in enumerate(zip(indices, encoded)):
            attributes = {name: value[row].tolist() for name, value in batch.attributes.items()}
            caption = {"caption": batch.captions[row], "attributes": attributes}
            yield f"{index:08d}", {"mp4": mp4, "json": json.dumps(caption, sort_keys=True).encode()}
        progress.advance(len(indices))
