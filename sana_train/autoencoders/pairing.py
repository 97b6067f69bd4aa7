"""Which latent frames of two spaces code the same video frames.

LTX-2 latent k >= 1 codes frames 8k-7..8k, and so do the Wan latents 2k-1, 2k; those of DCAE-V are 2k-2, 2k-1
if it leaves out frame 0. From frame 0 on its latents begin at multiples of 4, LTX-2's at 1 + 8k: no two
of them ever begin at one frame. So pairs are worked out from the frames, never from indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from sana_train.types import LatentSpec, VideoShape


@dataclass(frozen=True)
class FramePair:
    """Latent frames ``first`` of one space and ``second`` of the other, which code exactly ``frames``."""

    frames: range
    first: range
    second: range


@dataclass(frozen=True)
class FramePairing:
    """How two spaces divide one clip.

    Attributes:
        frames: video frames that both code.
        num_latents: latent frames of the first and of the second space.
        pairs: in order and as short as can be; latent frames in none of them code frames which the
            other space does not code, or divides elsewhere.
    """

    frames: range
    num_latents: tuple[int, int]
    pairs: tuple[FramePair, ...]


def pair_frames(first: LatentSpec, second: LatentSpec, num_frames: int) -> FramePairing:
    """Pair the latent frames of two spaces on a clip of ``num_frames``, skipped ones counted.

    Raises:
        ValueError: the clip is no whole number of latents in one of the spaces (a last latent that codes
            repeated frames has no partner), or no stretch of it is whole latents in both.
    """
    edges = latent_edges(first, num_frames), latent_edges(second, num_frames)
    shared = sorted(set(edges[0]) & set(edges[1]))
    if len(shared) < 2:
        raise ValueError(
            f"no frames of a {num_frames}-frame clip are whole latents in both spaces: the first is "
            f"{_describe(first)}, the second {_describe(second)}; set skip_frames so that latents of both "
            "begin at one frame"
        )
    places = [{frame: index for index, frame in enumerate(each)} for each in edges]
    pairs = tuple(
        FramePair(range(start, stop), *(range(place[start], place[stop]) for place in places))
        for start, stop in pairwise(shared)
    )
    frames = range(max(edges[0][0], edges[1][0]), num_frames)
    return FramePairing(frames, (len(edges[0]) - 1, len(edges[1]) - 1), pairs)


def latent_edges(spec: LatentSpec, num_frames: int) -> list[int]:
    """The frame at which each latent frame of a clip begins, and ``num_frames``: T + 1 numbers.

    Raises:
        ValueError: the clip is no whole number of latents.
    """
    coded = num_frames - spec.skip_frames
    if spec.temporal == "chunked" and coded > 0 and coded % spec.stride_t:
        excess = coded % spec.stride_t
        cut = f"cut the clip to {num_frames - excess} or " if coded > excess else ""
        raise ValueError(
            f"{num_frames} frames leave the last latent of {_describe(spec)} short by "
            f"{spec.stride_t - excess}; {cut}give it {num_frames - excess + spec.stride_t}"
        )
    _, num_latents, _, _ = spec.latent_shape(VideoShape(num_frames, spec.stride_h, spec.stride_w))
    alone = spec.temporal == "causal"  # the first frame
    starts = [max(0, index * spec.stride_t - alone * (spec.stride_t - 1)) for index in range(num_latents)]
    return [spec.skip_frames + start for start in starts] + [num_frames]


def _describe(spec: LatentSpec) -> str:
    grid = f"1 + {spec.stride_t}k" if spec.temporal == "causal" else f"{spec.stride_t}k"
    return f"{spec.temporal} on {grid} frames after {spec.skip_frames} skipped"
