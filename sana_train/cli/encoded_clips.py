"""A run's clips in a latent space: in memory, in a cache of the run's own, or encoded beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from sana_train.cli.config import RunConfig
from sana_train.data.bank import banked_clips
from sana_train.data.joined import JoinedClips
from sana_train.data.latent_clips import LatentClips, find_latents
from sana_train.data.latents import (
    clip_fields,
    latent_fingerprint,
    precompute_latents,
    space_fields,
    text_fields,
)
from sana_train.data.shard_cache import CACHE_GIB, ShardCache, cache_of
from sana_train.protocols import Autoencoder, ClipSource, TextEncoder
from sana_train.utils.hashing import json_hash

_RESIDENT_BYTES = 2**31  # a smaller cache of latents is kept in memory, a larger one is read as it is needed

Mode = Literal["resident", "cached", "precomputed"]


class EncodedClips:
    """Encodes, or opens, clips of one space.

    Args:
        cfg: whose ``latents``, ``data`` and ``paths`` say where.
        device: that encodes.
        name: of the space, for folders and progress.
        autoencoder: the space.
        text_encoder: of captions, which are kept beside latents.
    """

    def __init__(
        self,
        cfg: RunConfig,
        device: torch.device,
        name: str,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
    ) -> None:
        assert cfg.latents is not None  # its mode led here
        self.cfg, self.latents, self.device, self.name = cfg, cfg.latents, device, name
        self.autoencoder, self.text_encoder = autoencoder, text_encoder

    def clips(self, mode: Mode, split: str, source: ClipSource) -> ClipSource:
        """Those of ``split``; of joined sources each member, whose label is ``<split>/<member>``."""
        if isinstance(source, JoinedClips):
            return source.replaced(lambda member, clips: self._of_one(mode, f"{split}/{member}", clips))
        return self._of_one(mode, split, source)

    def _of_one(self, mode: Mode, label: str, source: ClipSource) -> ClipSource:
        if mode == "resident":
            return self._resident(source)
        if mode == "precomputed":
            return self._precomputed(label, source)
        return self._cached(label, source)

    def _resident(self, source: ClipSource) -> ClipSource:
        return banked_clips(
            source,  # type: ignore[arg-type]
            self.autoencoder,
            self.text_encoder,
            Path(self.cfg.paths.data) / "latents" / "bank",
            self.device,
            self.latents.batch_size,
        )

    def _cached(self, label: str, source: ClipSource) -> ClipSource:
        dtype = self.latents.dtype
        expected = latent_fingerprint(source, self.autoencoder, self.text_encoder, dtype)  # type: ignore[arg-type]
        # Other clips or encoders make another folder, so that two runs never fight over one cache.
        folder = f"{self.name}-{label.replace('/', '-')}-{json_hash(expected)[:12]}"
        out = Path(self.cfg.paths.data) / "latents" / self.cfg.scale / folder
        precompute_latents(
            source,  # type: ignore[arg-type]
            self.autoencoder,
            self.text_encoder,
            out,
            batch_size=self.latents.batch_size,
            device=self.device,
            dtype=dtype,
            description=f"encoding {label} clips, {self.name} space",
        )
        return self._opened(out, expected, _split_of(label))

    def _precomputed(self, label: str, source: ClipSource) -> ClipSource:
        encoders = space_fields(self.autoencoder, self.latents.dtype) | text_fields(self.text_encoder)
        expected = encoders | clip_fields(source)  # type: ignore[arg-type]
        split = _split_of(label)
        given = getattr(self.latents, split)
        found = given or find_latents(Path(self.cfg.paths.latents) / label, expected)
        return self._opened(found, expected, split)

    def _opened(self, path: str | Path | list[str], expected: dict[str, Any], split: str) -> ClipSource:
        # Clips that are rendered have no cache of their own; their latents may lie elsewhere all the same.
        default = ShardCache(Path(self.cfg.paths.data) / "shards", CACHE_GIB)
        cache = cache_of(getattr(self.cfg.data, split)) or default
        clips = LatentClips(path, expected, cache, self.latents.max_new_holes)
        return clips.resident(self.device) if clips.folder.num_bytes < _RESIDENT_BYTES else clips


def _split_of(label: str) -> str:
    """``train`` or ``heldout``, also of a joined source's member."""
    return label.partition("/")[0]
