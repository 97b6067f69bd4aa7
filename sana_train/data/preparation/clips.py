"""One video to its clips: chosen frames, resized, encoded, with what is known of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import torch
from torch import Tensor

from sana_train.data.preparation.captions import choose_caption, given_motion
from sana_train.data.preparation.cutting import Window, cut_windows
from sana_train.data.preparation.decoding import Header, decode_frames, fit, read_header
from sana_train.data.preparation.motion import MEASURE, motion_score
from sana_train.data.preparation.rules import PrepareRules
from sana_train.data.preparation.scenes import scene_starts
from sana_train.data.preparation.sources import Reject, Source
from sana_train.data.video import BadClip, encode_clip


@dataclass(frozen=True)
class Clip:
    """A sample of a shard.

    Attributes:
        key: hash of its video's bytes, number in it.
        members: extension -> bytes.
        is_as_found: whether the mp4 is the video's own bytes.
    """

    key: str
    members: dict[str, bytes]
    is_as_found: bool


def key_of(sha256: str, number: int) -> str:
    """Safe in any tar and alike wherever the video lies: no part of its name."""
    return f"{sha256[:16]}-{number:05d}"


def clips_of(
    source: Source, sha256: str, rules: PrepareRules, max_clips: int | None = None
) -> Iterator[Clip | Reject]:
    """The clips of a video, and why others are none; what is wrong with a video ends it, never the caller.

    Args:
        sha256: of its bytes.
        max_clips: stop after as many; for a probe.
    """
    caption = choose_caption(source.record, rules.caption_keys)
    assert caption is not None, "videos without a caption are not cut"
    number, start_s = 0, None
    try:
        with source.open() as file:
            header = read_header(file)
            fps = rules.rate or header.rate
            file.seek(0)
            scenes = [0]
            if rules.scene_threshold is not None:
                scenes = scene_starts(file, header.timeline, rules.scene_threshold)
                file.seek(0)
            windows = cut_windows(header.timeline, scenes, fps, rules)[:max_clips]
            if not windows:
                in_scenes = "" if len(scenes) == 1 else f" in any of its {len(scenes)} scenes"
                raise BadClip(
                    f"the video is too short: no {rules.frames} frames at {float(fps):g} fps{in_scenes}"
                )
            for number, (window, video) in enumerate(_decode(file, header, windows, rules)):
                start_s = window.start_s
                motion = motion_score(video, float(fps))
                score = motion if rules.motion_key is None else given_motion(source.record, rules.motion_key)
                assert score is not None, "videos without a wanted score are not cut"
                if (reason := motion_problem(score, rules)) is not None:
                    yield Reject(source.name, reason, window.start_s)
                    continue
                is_as_found = is_clip_already(header, fps, rules)
                mp4 = _bytes(file) if is_as_found else _encode(video, fps, rules)
                facts = {
                    "caption": caption,
                    "fps": round(float(fps), 6),
                    "motion_measure": rules.motion_key or MEASURE,
                    "motion_score": score,
                    "source": source.name,
                    "start_s": window.start_s,
                }
                text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
                yield Clip(key_of(sha256, number), {"mp4": mp4, "json": text.encode()}, is_as_found)
    except BadClip as error:  # of a long video what came before stays
        yield Reject(source.name, str(error), start_s)


def motion_problem(score: float, rules: PrepareRules) -> str | None:
    """Why a clip of this score is left out."""
    if rules.min_motion is not None and score < rules.min_motion:
        return f"too little motion: {score:g}, min_motion={rules.min_motion:g}"
    if rules.max_motion is not None and score > rules.max_motion:
        return f"too much motion: {score:g}, max_motion={rules.max_motion:g}"
    return None


def is_clip_already(header: Header, fps: Fraction, rules: PrepareRules) -> bool:
    """Whether a video's own bytes are the clip: encoding them anew would only lose quality.

    So they stay where they are H.264 in an mp4 with no other stream, and size, frames and steady rate are
    what is asked for, whatever their ``crf`` and ``pixel_format`` were.
    """
    is_size = (header.height_px, header.width_px) == (rules.height_px, rules.width_px)
    timeline = header.timeline
    is_whole = len(timeline.pts) == rules.frames and timeline.is_steady and header.rate == fps
    return header.is_plain and is_size and is_whole


def _decode(
    file: BinaryIO, header: Header, windows: Sequence[Window], rules: PrepareRules
) -> Iterator[tuple[Window, Tensor]]:
    """Each window with its pixels, (3, F, H, W) uint8.

    Raises:
        BadClip: a frame that is needed does not decode.
    """
    square, target = (header.height_px, header.width_px), (rules.height_px, rules.width_px)
    left = list(reversed(windows))
    frames: list[Tensor] = []
    for index, pixels in decode_frames(file, header.timeline):
        wanted = left[-1].frames[len(frames)]
        if index > wanted:
            raise BadClip(f"the video is damaged: frame {wanted} does not decode")
        fitted: Tensor | None = None
        while left and left[-1].frames[len(frames)] == index:
            fitted = fit(pixels(), square, target) if fitted is None else fitted
            frames.append(fitted)
            if len(frames) == rules.frames:
                yield left.pop(), torch.stack(frames, dim=1)
                frames = []
        if not left:
            return
    decoded = left[-1].frames[len(frames)]
    raise BadClip(f"the video is truncated: {decoded} of {len(header.timeline.pts)} frames decode")


def _encode(video: Tensor, fps: Fraction, rules: PrepareRules) -> bytes:
    return encode_clip(video, fps, crf=rules.crf, preset=rules.preset, pixel_format=rules.pixel_format)


def _bytes(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()
