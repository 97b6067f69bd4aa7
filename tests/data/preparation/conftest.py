"""Small real videos of all kinds, and rules for clips of 9 frames of 32x48 px at 8 fps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from sana_train.cli.prepare_data import read_rules
from sana_train.data.preparation.rules import PrepareRules
from sana_train.data.video import encode_clip

SMALL = ("height_px=32", "width_px=48", "stride_px=16", "frames=9", "fps=8", "heldout_share=0")


def rules(*words: str) -> PrepareRules:
    return read_rules([*SMALL, *words])


def blobs(seed: int, frames: int, height_px: int = 48, width_px: int = 64) -> torch.Tensor:
    """Soft colours that change, (3, F, H, W) uint8."""
    grid = torch.rand(1, 3, 5, 4, 6, generator=torch.Generator().manual_seed(seed))
    video = torch.nn.functional.interpolate(grid, size=(frames, height_px, width_px), mode="trilinear")
    return (video[0] * 255).round().to(torch.uint8)


def grey_levels(levels: Sequence[int], height_px: int = 48, width_px: int = 64) -> torch.Tensor:
    """A flat frame of each level."""
    column = torch.tensor(list(levels), dtype=torch.uint8).view(1, -1, 1, 1)
    return column.expand(3, -1, height_px, width_px).contiguous()


def at_times(video: torch.Tensor, times_ms: Sequence[int], **how: Any) -> bytes:
    """An mkv, or a ``container`` of another kind, whose frames are shown at any times."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=how.get("container", "matroska")) as file:
        stream: Any = file.add_stream("libx264", rate=1000, options={"crf": "4", "bf": "0"})
        stream.height, stream.width = video.shape[2:]
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for frame, at_ms in zip(video.permute(1, 2, 3, 0).numpy(), times_ms, strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = at_ms, Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return buffer.getvalue()


def displayed(
    video: torch.Tensor, fps: int = 8, *, matrix: Sequence[int] | None = None, aspect: Any = None
) -> bytes:
    """An mp4 with a display matrix, or with pixels that are not square."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("libx264", rate=fps, options={"crf": "4"})
        stream.height, stream.width = video.shape[2:]
        stream.pix_fmt = "yuv444p"
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for frame in video.permute(1, 2, 3, 0).numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def sound_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 48000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """(F, H, W, 3) uint8, whatever the video's size is."""
    with av.open(io.BytesIO(data)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve captioned videos of 24 frames, so two clips each, with names that want care."""
    place = tmp_path / "videos"
    (place / "sub folder").mkdir(parents=True)
    for number in range(12):
        name = f"sub folder/víde o.{number}.mp4" if number % 3 == 0 else f"v{number:02}.mp4"
        (place / name).write_bytes(encode_clip(blobs(number, 24), 8, crf=10, pixel_format="yuv420p"))
        (place / name).with_suffix(".txt").write_text(f"blobs number {number}\n")
    return place


def contents(place: Path) -> dict[str, bytes]:
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }
