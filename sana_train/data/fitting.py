"""What happens to a clip that is larger, longer or quicker than what is trained on: the only place for it.

The picture is scaled until its shorter side, measured against the target, just fits (bicubic, antialiased),
and cut to the target around its centre. Nothing is ever enlarged. Frames are taken from the clip's head; at
a lower rate the ones nearest in time, and nothing is ever repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from sana_train.data.video import too_short
from sana_train.types import VideoShape

_SAME_RATE = 0.01  # 23.976 is 24: frames stay as they are


@dataclass(frozen=True)
class ClipFit:
    """How clips are made to fit ``video``.

    Attributes:
        video: the size that results.
        fps: rate of the frames taken; None takes the file's own, whatever it is.
    """

    video: VideoShape
    fps: float | None = None

    def __str__(self) -> str:
        """For fingerprints and records."""
        video = self.video
        rate = "the file's fps" if self.fps is None else f"at {self.fps:g} fps (nearest in time)"
        return (
            f"scaled down to fill {video.height_px}x{video.width_px} px (bicubic, antialiased), centre crop, "
            f"first {video.frames} frames, {rate}"
        )

    def problem(self, facts: Mapping[str, Any]) -> str | None:
        """Why a clip with these facts (frames, height_px, width_px, fps) cannot be made to fit."""
        video = self.video
        if facts["height_px"] < video.height_px or facts["width_px"] < video.width_px:
            return (
                f"the clip is too small: {facts['height_px']}x{facts['width_px']} px, wanted at least "
                f"{video.height_px}x{video.width_px} px"
            )
        if self.fps is not None and video.frames > 1 and facts["fps"] < self.fps * (1 - _SAME_RATE):
            return f"the clip has too few frames a second: {facts['fps']:g}, wanted at least {self.fps:g}"
        wanted = self.frame_numbers(facts["fps"])[-1] + 1
        if facts["frames"] >= wanted:
            return None
        why = "" if wanted == video.frames else f" of {facts['fps']:g} fps for {video.frames} of {self.fps:g}"
        return too_short(facts["frames"], VideoShape(wanted, video.height_px, video.width_px)) + why

    def frame_numbers(self, fps: float) -> list[int]:
        """The frames to take of a clip of ``fps`` frames a second, ascending."""
        step = 1.0 if self.fps is None or self.video.frames == 1 else fps / self.fps
        step = 1.0 if abs(step - 1.0) <= _SAME_RATE else step
        return [int(number * step + 0.5) for number in range(self.video.frames)]

    def kept_share(self, height_px: int, width_px: int) -> float:
        """Of a picture's area, what the crop leaves, in (0, 1]."""
        scale = self._scale(height_px, width_px)
        return self.video.height_px * self.video.width_px / (scale * scale * height_px * width_px)

    def _scale(self, height_px: int, width_px: int) -> float:
        return max(self.video.height_px / height_px, self.video.width_px / width_px)

    def picture(self, frame: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 of a file -> (3, height_px, width_px) uint8."""
        video, (height, width) = self.video, frame.shape[:2]
        pixels = rearrange(torch.from_numpy(frame), "h w c -> c h w")
        if (height, width) == (video.height_px, video.width_px):
            return pixels
        scale = self._scale(height, width)
        size = (max(video.height_px, round(height * scale)), max(video.width_px, round(width * scale)))
        scaled = F.interpolate(pixels[None].float(), size, mode="bicubic", antialias=True)[0]
        top, left = (size[0] - video.height_px) // 2, (size[1] - video.width_px) // 2
        cut = scaled[:, top : top + video.height_px, left : left + video.width_px]
        return cut.round().clamp(0, 255).to(torch.uint8)
