"""One video to its clips: bytes, facts, and damage told of with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sana_train.data.preparation.clips import Clip, clips_of
from sana_train.data.preparation.motion import motion_score
from sana_train.data.preparation.sources import Reject, Source
from sana_train.data.video import decode_clip, encode_clip
from tests.data.preparation.conftest import at_times, blobs, decode, grey_levels, rules

SHA = "0123456789abcdef" * 4


def cut(tmp_path: Path, data: bytes, *words: str, name: str = "a.mp4", **record: Any) -> list[Clip | Reject]:
    path = tmp_path / name
    path.write_bytes(data)
    return list(clips_of(Source(name, path, record={"caption": " a caption ", **record}), SHA, rules(*words)))


def test_a_clip_decodes_as_training_will(tmp_path: Path) -> None:
    video = blobs(0, 20)
    clips = cut(tmp_path, encode_clip(video, 8, crf=1))
    for number, clip in enumerate(clips):
        assert isinstance(clip, Clip) and clip.key == f"0123456789abcdef-{number:05d}"
        facts = json.loads(clip.members["json"])
        assert facts["caption"] == "a caption" and facts["source"] == "a.mp4"
        assert (facts["fps"], facts["start_s"]) == (8, number * 9 / 8)
        seen = decode_clip(clip.members["mp4"], rules().shape).float()
        wanted = video[:, 9 * number : 9 * number + 9, :, 0:64].float()
        wanted = torch.nn.functional.interpolate(
            wanted.transpose(0, 1), size=(36, 48), mode="area"
        ).transpose(0, 1)[:, :, 2:34]
        assert (seen - wanted).abs().mean() < 5
    assert len(clips) == 2


def test_variable_frame_rate_is_resampled_by_time(tmp_path: Path) -> None:
    """Grey rises with time, so a clip's greys say which moments it shows."""
    times_ms = [0, 50, 260, 300, 330, 600, 640, 900, 1130, 1200, 1240]
    data = at_times(grey_levels([20 + at // 10 for at in times_ms]), times_ms)
    (clip,) = cut(tmp_path, data, "max_clips_per_video=1", name="a.mkv")
    assert isinstance(clip, Clip)
    greys = decode(clip.members["mp4"]).mean(axis=(1, 2, 3))
    nearest = [min(times_ms, key=lambda t, at=at: (abs(t - at), t)) for at in np.arange(9) * 125]
    assert np.abs(greys - [20 + at // 10 for at in nearest]).max() < 3


def test_a_video_that_is_a_clip_already_stays_as_it_is(tmp_path: Path) -> None:
    data = encode_clip(blobs(0, 9, 32, 48), 8, crf=30)
    (clip,) = cut(tmp_path, data)
    assert isinstance(clip, Clip) and clip.is_as_found and clip.members["mp4"] == data
    for other in (
        encode_clip(blobs(0, 10, 32, 48), 8),
        encode_clip(blobs(0, 9, 32, 48), 7),
        encode_clip(blobs(0, 9), 8),
    ):
        (clip,) = cut(tmp_path, other)
        assert isinstance(clip, Clip) and not clip.is_as_found


def test_own_rate_is_kept(tmp_path: Path) -> None:
    (clip,) = cut(tmp_path, encode_clip(blobs(0, 9), 25), "fps=null")
    assert isinstance(clip, Clip) and json.loads(clip.members["json"])["fps"] == 25


def test_damage_ends_a_video_where_it_is(tmp_path: Path) -> None:
    import io

    import av

    data = io.BytesIO()  # header first, so that a cut leaves frames
    with (
        av.open(io.BytesIO(encode_clip(blobs(0, 40), 8))) as source,
        av.open(data, "w", format="mp4", options={"movflags": "frag_every_frame+empty_moov"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    whole = data.getvalue()
    clips = cut(tmp_path, whole[: len(whole) * 6 // 10])
    assert [type(clip) for clip in clips[:2]] == [Clip, Clip]
    assert len(cut(tmp_path, whole)) == 4 > sum(isinstance(clip, Clip) for clip in clips)
    broken = bytearray(encode_clip(blobs(0, 40), 8))
    at = broken.index(b"mdat") + len(broken) // 2
    broken[at : at + 400] = bytes(400)
    reasons = [clip.reason for clip in cut(tmp_path, bytes(broken)) if isinstance(clip, Reject)]
    assert len(reasons) == 1 and "the video" in reasons[0]


def test_motion_score_against_arithmetic() -> None:
    """8 fps, half a second is 4 frames; each frame is 10 levels brighter than the last."""
    assert motion_score(grey_levels(range(0, 90, 10)), 8) == pytest.approx(40 / 255 * 100, abs=1e-3)
    assert motion_score(grey_levels([7] * 9), 8) == 0
    assert motion_score(grey_levels([0, 255]), 60) == pytest.approx(100, abs=1e-3)
    assert motion_score(grey_levels([9]), 8) == 0


def test_motion_filters_name_clip_and_score(tmp_path: Path) -> None:
    still_then_moving = torch.cat([blobs(0, 1).expand(-1, 9, -1, -1), blobs(1, 9)], dim=1)
    still, moving = cut(tmp_path, encode_clip(still_then_moving, 8), "min_motion=1")
    assert isinstance(still, Reject) and still.reason.startswith("too little motion: ") and still.start_s == 0
    assert isinstance(moving, Clip) and json.loads(moving.members["json"])["motion_score"] > 1
    moving, still = cut(tmp_path, encode_clip(still_then_moving.flip(1), 8), "max_motion=1")
    assert isinstance(moving, Reject) and "too much motion" in moving.reason and isinstance(still, Clip)


def test_a_given_score_is_passed_through(tmp_path: Path) -> None:
    (clip,) = cut(tmp_path, encode_clip(blobs(0, 9), 8), "motion_key=_unimatch", _unimatch=[2, 4.0])
    assert isinstance(clip, Clip)
    facts = json.loads(clip.members["json"])
    assert (facts["motion_score"], facts["motion_measure"]) == (3, "_unimatch")
