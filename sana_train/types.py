"""Vocabulary types shared by every floor.

Legend: B batch, C channels, F frames, T/H/W latent grid, S text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

SPACE_NAME = "space.json"  # beside latent shards: what their space is (data/space.py)


@dataclass(frozen=True)
class VideoShape:
    """Size of one clip in pixels and frames."""

    frames: int
    height_px: int
    width_px: int


@dataclass(frozen=True)
class LatentSpec:
    """Geometry of an autoencoder's latent space; statistics live with the weights.

    Args:
        channels: latent channels.
        stride_t: video frames per latent frame.
        stride_h: pixels per latent row.
        stride_w: pixels per latent column.
        temporal: ``causal`` maps 1 + k * stride_t frames to 1 + k latents (the first frame stands
            alone); ``chunked`` maps k * stride_t frames to k latents.
        skip_frames: frames at the head of a clip which the autoencoder leaves out, so that a
            ``chunked`` space pairs with a ``causal`` one on the same 1 + 8k clip.
    """

    channels: int
    stride_t: int
    stride_h: int
    stride_w: int
    temporal: Literal["causal", "chunked"] = "causal"
    skip_frames: int = 0

    def latent_shape(self, video: VideoShape) -> tuple[int, int, int, int]:
        """(C, T, H, W) of the latents of ``video``.

        Raises:
            ValueError: the clip does not fit the strides.
        """
        if video.height_px % self.stride_h or video.width_px % self.stride_w:
            raise ValueError(
                f"a {video.height_px}x{video.width_px} px clip does not divide into latents of "
                f"{self.stride_h}x{self.stride_w} px; crop or resize it to multiples of these"
            )
        frames = video.frames - self.skip_frames
        if self.temporal == "causal":
            if frames < 1 or (frames - 1) % self.stride_t:
                raise ValueError(
                    f"a causal autoencoder of temporal stride {self.stride_t} takes 1 + "
                    f"{self.stride_t}k frames, got {frames}; cut the clip to "
                    f"{1 + max(0, frames - 1) // self.stride_t * self.stride_t}"
                )
            num_latents = 1 + (frames - 1) // self.stride_t
        else:
            if frames < 1:
                raise ValueError(f"no frames left of {video.frames} after skipping {self.skip_frames}")
            num_latents = -(-frames // self.stride_t)
        return (
            self.channels,
            num_latents,
            video.height_px // self.stride_h,
            video.width_px // self.stride_w,
        )

    def video_shape(self, num_latents: int, height: int, width: int) -> VideoShape:
        """Size of the clip that a (T, H, W) latent grid decodes to (without skipped frames)."""
        causal = self.temporal == "causal"
        frames = 1 + (num_latents - 1) * self.stride_t if causal else num_latents * self.stride_t
        return VideoShape(frames, height * self.stride_h, width * self.stride_w)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class VideoLatents:
    """Latents that know what they are, for where two networks share a space.

    Attributes:
        values: (B, C, T, H, W).
        space: fingerprint of the autoencoder whose latents these are.
        is_normalised: zero mean and unit variance; otherwise raw, as the autoencoder codes them.
        fps: frames per second of the clips that they decode to.
    """

    values: Tensor
    space: str
    is_normalised: bool
    fps: float


@dataclass
class Batch:
    """A batch of clips, as pixels, as latents or as both. Fields not loaded are ``None``.

    Attributes:
        index: (B,) int64, clip ids within their source.
        ordinals: (B,) int64, samples drawn before this step + slot; the counter for all randomness.
        weight: (B,) float32, 1 for a clip and 0 for a reported hole.
        captions: B strings.
        video: (B, 3, F, H, W) in [-1, 1].
        latents: (B, C, T, H, W), raw (before normalisation).
        context: (B, S, D) encoded captions, padded.
        context_mask: (B, S) bool, True = token.
        attributes: ground truth of procedural clips; int64 of shape (B,) or (B, K), -1 = not applicable.
        cells: (B, F, h, w) int64, what procedural clips show in each cell of a grid, -1 = the backdrop; an
            aid to training that such sources give if asked.
    """

    index: Tensor
    ordinals: Tensor
    weight: Tensor
    captions: tuple[str, ...]
    video: Tensor | None = None
    latents: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None
    attributes: dict[str, Tensor] = field(default_factory=dict)
    cells: Tensor | None = None

    def __len__(self) -> int:
        return self.index.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """A copy of the batch on ``device``."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy of the batch in page-locked memory, from which copies to a GPU run beside its work."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        attributes = {name: change(value) for name, value in self.attributes.items()}
        return replace(self, **tensors, attributes=attributes)
