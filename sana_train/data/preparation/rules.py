"""The rules by which videos become clips; ``conf/prepare.yaml`` has their values and what each is for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

from sana_train.types import LatentSpec, VideoShape

_MAX_CRF = 51


@dataclass(frozen=True)
class PrepareRules:
    """Which videos are taken, what of them, and how it is written.

    Raises:
        ValueError: a number out of its range, or clips that no autoencoder of these strides takes.
    """

    height_px: int
    width_px: int
    allow_upscaling: bool
    frames: int
    stride_t: int
    stride_px: int
    fps: float | None
    cut: Literal["start", "middle", "consecutive"]
    max_clips_per_video: int | None
    scene_threshold: float | None
    min_height_px: int
    min_width_px: int
    min_duration_s: float
    video_keys: Sequence[str]
    caption_keys: Sequence[str]
    motion_key: str | None
    min_motion: float | None
    max_motion: float | None
    crf: int
    preset: Literal[
        "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
    ]  # fmt: skip
    pixel_format: Literal["yuv420p", "yuv444p"]
    clips_per_shard: int
    heldout_share: float
    heldout_seed: int

    def __post_init__(self) -> None:
        for name in ("height_px", "width_px", "frames", "stride_t", "stride_px", "clips_per_shard"):
            _require(name, getattr(self, name) >= 1, getattr(self, name), "at least 1")
        for name in ("max_clips_per_video", "fps", "scene_threshold"):
            value = getattr(self, name)
            _require(name, value is None or value > 0, value, "a number above 0, or null")
        for name in ("min_height_px", "min_width_px", "min_duration_s"):
            _require(name, getattr(self, name) >= 0, getattr(self, name), "at least 0")
        _require("crf", 0 <= self.crf <= _MAX_CRF, self.crf, f"0 to {_MAX_CRF}")
        share = self.heldout_share
        _require("heldout_share", 0 <= share < 1, share, "from 0 to below 1")
        _require("video_keys", len(self.video_keys) > 0, self.video_keys, "at least one key")
        _require("caption_keys", len(self.caption_keys) > 0, self.caption_keys, "at least one key")
        if None not in (self.min_motion, self.max_motion) and self.min_motion > self.max_motion:  # type: ignore[operator]
            raise ValueError(f"min_motion={self.min_motion} is above max_motion={self.max_motion}: swap them")
        if self.pixel_format == "yuv420p" and (self.height_px % 2 or self.width_px % 2):
            raise ValueError(
                f"pixel_format=yuv420p halves the colours of {self.height_px}x{self.width_px} px, which "
                "takes even sides; give even ones, or pixel_format=yuv444p"
            )
        # The grid's own words for frames and sides that do not fit.
        LatentSpec(1, self.stride_t, self.stride_px, self.stride_px).latent_shape(self.shape)

    @property
    def shape(self) -> VideoShape:
        """What every clip has."""
        return VideoShape(self.frames, self.height_px, self.width_px)

    @property
    def rate(self) -> Fraction | None:
        """``fps`` as a ratio of small numbers: 29.97 and 23.976 are meant as 30000/1001 and 24000/1001."""
        if self.fps is None:
            return None
        exact = Fraction(self.fps).limit_denominator(1001)
        of_ntsc = Fraction(round(self.fps * 1.001) * 1000, 1001)
        return of_ntsc if math.isclose(of_ntsc, self.fps, rel_tol=2e-5) else exact

    def record(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in asdict(self).items()}


def _require(name: str, holds: bool, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value}: expected {expected}")
