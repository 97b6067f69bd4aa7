"""Procedural clips as real files: rendered to shards at first use, decoded ever after."""

from __future__ import annotations

from pathlib import Path

from sana_train.data.prepare import render_shards
from sana_train.data.shards import ShardClips
from sana_train.data.world.clips import WorldClips


def rendered_shards(source: WorldClips, path: str) -> ShardClips:
    """Clips of ``source`` through H.264 mp4 + json WebDataset shards.

    Args:
        source: what is rendered.
        path: folder for the shards of this source. Each source has a folder of its own in it, so
            that asking for more clips makes another set instead of failing on the first.
    """
    folder = Path(path) / source.fingerprint()
    render_shards(source, folder, description=f"rendering {source.split} clips")
    return ShardClips(str(folder), source.frames, source.size_px, source.size_px)
