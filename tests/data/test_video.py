"""mp4 bytes to pixels and back, and every way in which a clip can be unusable."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.data.video import (
    BadClip,
    ClipHeader,
    decode_clip,
    encode_clip,
    probe_clip,
    to_float,
    to_uint8,
)
from sana_train.types import VideoShape

SHAPE = VideoShape(frames=9, height_px=32, width_px=32)


def test_uint8_round_trip_is_exact() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_float(levels).min() == -1.0
    assert to_float(levels).max() == 1.0


def test_fine_colour_stripes_survive() -> None:
    """Red and green stripes of three pixels: what 4:2:0 chroma would wash out."""
    columns = torch.arange(32) // 3 % 2 == 0
    red, green = torch.tensor([200.0, 40, 60]), torch.tensor([30.0, 180, 90])
    image = torch.where(columns, red[:, None], green[:, None])  # (3, W)
    video = image[:, None, None, :].expand(3, 9, 32, 32).to(torch.uint8)
    kept = decode_clip(encode_clip(video, fps=8), SHAPE)
    assert (kept.float() - video.float()).abs().mean() < 1.5
    washed = decode_clip(encode_clip(video, fps=8, pixel_format="yuv420p"), SHAPE)
    assert (washed.float() - video.float()).abs().mean() > 5.0


def test_clips_come_back_frame_by_frame(squares: Any) -> None:
    for index in range(3):
        clip = squares.clip(index)
        data = encode_clip(clip, fps=8)
        assert probe_clip(data) == ClipHeader(9, 32, 32, 8.0)
        error = (to_float(decode_clip(data, SHAPE)) - clip).abs()
        assert error.mean(dim=(0, 2, 3)).max() < 0.02  # in every frame: none lost, none swapped


def test_equal_clips_give_equal_bytes(squares: Any) -> None:
    """Often, and with other memory contents each time: x264 has read what it never wrote."""
    encoded = set()
    for trial in range(50):
        dirt = torch.full((1 << 18,), trial, dtype=torch.uint8)
        del dirt
        encoded.add(encode_clip(squares.clip(0), fps=8))
    assert len(encoded) == 1


def test_longer_clips_give_their_head(squares: Any) -> None:
    data = encode_clip(squares.clip(1), fps=8)
    head = decode_clip(data, VideoShape(5, 32, 32))
    assert torch.equal(head, decode_clip(data, SHAPE)[:, :5])


def test_short_clip_says_how_short(squares: Any) -> None:
    data = encode_clip(squares.clip(0)[:, :4], fps=8)
    with pytest.raises(BadClip, match="too short: 4 frames, expected 9"):
        decode_clip(data, SHAPE)


def test_wrong_size_says_both_sizes(squares: Any) -> None:
    data = encode_clip(squares.clip(0)[:, :, :16], fps=8)
    with pytest.raises(BadClip, match="16x32 px, expected 32x32 px"):
        decode_clip(data, SHAPE)


def _remux(data: bytes, path: Path, movflags: str) -> bytes:
    """The same packets in another layout of an mp4."""
    import av
    from av.container import InputContainer

    with (
        av.open(io.BytesIO(data)) as source,
        av.open(str(path), "w", options={"movflags": movflags}) as target,
    ):
        assert isinstance(source, InputContainer)
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path.read_bytes()


# Header at the end, header first as in files made for streaming, and as recorders write it.
LAYOUTS = ("", "faststart", "frag_keyframe+empty_moov", "frag_every_frame+empty_moov")


@pytest.mark.parametrize("movflags", LAYOUTS[2:])
def test_fragmented_mp4_has_its_frames_counted(squares: Any, tmp_path: Path, movflags: str) -> None:
    data = encode_clip(squares.clip(0), fps=8)
    fragmented = _remux(data, tmp_path / "clip.mp4", movflags)
    assert probe_clip(fragmented).frames == 9
    assert torch.equal(decode_clip(fragmented, SHAPE), decode_clip(data, SHAPE))


@pytest.mark.parametrize("movflags", LAYOUTS)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.8, 0.95, 0.98])
def test_truncated_mp4_is_never_a_clip(tmp_path: Path, movflags: str, kept: float) -> None:
    noise = torch.rand(3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = encode_clip(noise, fps=8)
    if movflags:
        data = _remux(data, tmp_path / "clip.mp4", movflags)
        assert torch.equal(decode_clip(data, SHAPE), decode_clip(encode_clip(noise, fps=8), SHAPE))
    with pytest.raises(BadClip, match=r"truncated|damaged|too short"):
        decode_clip(data[: int(kept * len(data))], SHAPE)


def test_other_bytes_are_not_a_clip() -> None:
    with pytest.raises(BadClip, match="cannot be opened"):
        probe_clip(b"not a video" * 100)
