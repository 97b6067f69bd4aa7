"""Frames as they are meant to be seen: turned, square, at their times; and damage that is noticed."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
import torch

from sana_train.data.preparation.decoding import decode_frames, fit, read_header
from sana_train.data.video import BadClip, encode_clip
from tests.data.preparation.conftest import at_times, blobs, displayed, grey_levels, sound_only

ONE = 1 << 16
QUARTERS = {  # display matrix -> what a viewer makes of (F, H, W, C) pixels
    "upright": ((ONE, 0, 0, ONE), lambda p: p),
    "clockwise": ((0, ONE, -ONE, 0), lambda p: np.rot90(p, -1, axes=(1, 2))),
    "half": ((-ONE, 0, 0, -ONE), lambda p: np.rot90(p, 2, axes=(1, 2))),
    "counter": ((0, -ONE, ONE, 0), lambda p: np.rot90(p, 1, axes=(1, 2))),
    "mirrored": ((-ONE, 0, 0, ONE), lambda p: p[:, :, ::-1]),
    "transposed": ((0, ONE, ONE, 0), lambda p: p.transpose(0, 2, 1, 3)),
}


def pixels_of(data: bytes) -> np.ndarray:
    header = read_header(io.BytesIO(data))
    return np.stack([pixels() for _, pixels in decode_frames(io.BytesIO(data), header.timeline)])


@pytest.mark.parametrize("name", QUARTERS)
def test_a_display_matrix_is_applied(name: str) -> None:
    (a, b, c, d), turn = QUARTERS[name]
    video = blobs(0, 3, 32, 64)
    data = displayed(video, matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    wanted = turn(video.permute(1, 2, 3, 0).numpy())
    header = read_header(io.BytesIO(data))
    assert (header.height_px, header.width_px) == wanted.shape[1:3]
    assert header.is_plain == (name == "upright")
    assert np.abs(pixels_of(data).astype(int) - wanted.astype(int)).mean() < 3


def test_turned_as_ffmpeg_turns() -> None:
    """FFmpeg's own name of the angle: counter-clockwise degrees that put the picture upright."""
    import av

    data = displayed(blobs(0, 2, 32, 64), matrix=(0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30))
    with av.open(io.BytesIO(data)) as file:
        frame = next(file.decode(video=0))
        plain = frame.to_ndarray(format="rgb24")
        assert np.array_equal(pixels_of(data)[0], np.rot90(plain, frame.rotation // 90))


def test_another_angle_is_rejected() -> None:
    data = displayed(blobs(0, 2), matrix=(46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30))
    with pytest.raises(BadClip, match="not of quarter turns"):
        read_header(io.BytesIO(data))


def test_pixels_that_are_not_square_are_displayed_so() -> None:
    header = read_header(io.BytesIO(displayed(blobs(0, 2, 48, 64), aspect=Fraction(3, 2))))
    assert (header.height_px, header.width_px, header.is_plain) == (48, 96, False)


def test_times_are_those_of_the_frames() -> None:
    times_ms = [0, 40, 200, 230, 700]
    timeline = read_header(io.BytesIO(at_times(grey_levels(range(5)), times_ms))).timeline
    assert [round(float(timeline.time_s(i)) * 1000) for i in range(5)] == times_ms
    assert not timeline.is_steady
    steady = read_header(io.BytesIO(at_times(grey_levels(range(6)), [0, 16, 33, 50, 66, 83])))
    assert steady.timeline.is_steady and 58 < steady.rate < 62
    assert read_header(io.BytesIO(encode_clip(blobs(0, 5), Fraction(30000, 1001)))).rate == Fraction(
        30000, 1001
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file has 0 bytes"),
        (b"no video at all" * 100, "cannot be decoded"),
        (sound_only(), "no video stream"),
        (encode_clip(blobs(0, 9), 8)[:600], "cannot be decoded"),
    ],
    ids=["empty", "text", "sound", "cut"],
)
def test_what_is_no_video(data: bytes, reason: str) -> None:
    with pytest.raises(BadClip, match=reason):
        read_header(io.BytesIO(data))


@pytest.mark.parametrize(
    ("height_px", "width_px"), [(64, 96), (61, 175), (201, 53), (33, 49), (32, 48), (8, 12)]
)
def test_fit_covers_and_keeps_the_centre(height_px: int, width_px: int) -> None:
    image = np.zeros((height_px, width_px, 3), dtype=np.uint8)
    image[height_px // 4 : -(height_px // 4), width_px // 4 : -(width_px // 4)] = 200
    fitted = fit(image, (height_px, width_px), (32, 48)).float()
    assert fitted.shape == (3, 32, 48)
    assert fitted[:, 15:17, 23:25].min() > 190
    for axis in (1, 2):
        assert (fitted - fitted.flip(axis)).abs().mean() < 8


def test_downscaling_is_antialiased() -> None:
    """Lines finer than a pixel become grey; picking pixels would leave them black or white."""
    lines = np.zeros((288, 432, 3), dtype=np.uint8)  # by 9: a new pixel's centre is one of the old ones
    lines[:, ::2] = 255
    fitted = fit(lines, (288, 432), (32, 48)).float()
    assert (fitted[:, :, 2:-2] - 127.5).abs().max() < 20


def test_same_size_is_the_same_pixels() -> None:
    image = blobs(0, 1, 32, 48)[:, 0]
    assert torch.equal(fit(image.permute(1, 2, 0).numpy(), (32, 48), (32, 48)), image)
