"""H.264 clips in memory: bytes of an mp4 to pixels and back.

Clips are kept as 4:4:4: on 128 px stripes of six pixels, halving the chroma costs 20 dB and the
colours with it. For a browser, which plays 4:2:0 only, encode with ``pixel_format="yuv420p"``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from sana_train.types import VideoShape

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.stream import VideoStream


class BadClip(ValueError):  # noqa: N818 - it names the clip
    """A clip that cannot be used; the message is the reason a hole is reported with."""


def kind_of(reason: str) -> str:
    """What clips that cannot be used for the same reason share: the text before a colon or a parenthesis."""
    return re.split(r": | \(", reason, maxsplit=1)[0]


def other_size(height_px: int, width_px: int, video: VideoShape) -> str:
    """The reason for a clip of another size than ``video``."""
    return (
        f"the clip has another size: {height_px}x{width_px} px, expected "
        f"{video.height_px}x{video.width_px} px"
    )


def too_short(frames: int, video: VideoShape) -> str:
    """The reason for a clip of fewer frames than ``video``."""
    return f"the clip is too short: {frames} frames, expected {video.frames}"


def decoder_version() -> str:
    """The libraries that turn an mp4 into RGB; another version may round colours otherwise."""
    import av

    versions = {name: ".".join(map(str, number)) for name, number in av.library_versions.items()}
    return ", ".join(f"{name} {versions[name]}" for name in ("libavcodec", "libswscale"))


def to_uint8(video: Tensor) -> Tensor:
    """[-1, 1] float -> 0..255, rounded."""
    return ((video.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(video: Tensor) -> Tensor:
    """0..255 -> [-1, 1] float32."""
    return video.float() / 127.5 - 1.0


def encode_clip(
    video: Tensor,
    fps: int | Fraction,
    *,
    crf: int = 4,
    preset: str = "veryfast",
    pixel_format: Literal["yuv444p", "yuv420p"] = "yuv444p",
) -> bytes:
    """An mp4 of ``video`` (3, F, H, W), either uint8 or float in [-1, 1]; equal input gives equal bytes.

    Args:
        crf: x264's quality, 0 (lossless) to 51; 4 keeps about 50 dB on the procedural world.
    """
    import av

    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"a clip is (3, F, H, W), got {tuple(video.shape)}")
    pixels = video if video.dtype == torch.uint8 else to_uint8(video)
    frames = rearrange(pixels, "c f h w -> f h w c").cpu().contiguous().numpy()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # Equal bytes everywhere: with more threads x264's output depends on their number, and its
        # macroblock tree reads uninitialised memory on clips of 32 px.
        options = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "mbtree=0"}
        stream: Any = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        convert = _converter(pixel_format)
        for frame in frames:
            container.mux(stream.encode(convert(av.VideoFrame.from_ndarray(frame, format="rgb24"))))
        container.mux(stream.encode())
    return buffer.getvalue()


def _converter(pixel_format: str) -> Callable[[VideoFrame], VideoFrame]:
    """Frames to ``pixel_format``, with one scaler for all and no threads: half the time on small clips."""
    from av.video.reformatter import VideoReformatter

    return partial(VideoReformatter().reformat, format=pixel_format, threads=1)


def _open_stream(container: Any) -> VideoStream:
    if not container.streams.video:
        raise BadClip("the file has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise BadClip("the mp4's header is incomplete, the file may be truncated")
    stream.thread_type = "NONE"  # clips are short; parallelism is over clips
    return stream


@dataclass(frozen=True)
class ClipHeader:
    """What an mp4 says of itself.

    Attributes:
        frames: declared or, where the header leaves them open, counted by packets.
        height_px: of a frame.
        width_px: of a frame.
        fps: on average; 0 where it is not known.
    """

    frames: int
    height_px: int
    width_px: int
    fps: float


def probe_clip(data: bytes) -> ClipHeader:
    """The header of an mp4; nothing is decoded.

    A fragmented mp4, which is written as it is recorded, declares 0 frames: its packets are counted.

    Raises:
        BadClip: the bytes are not a readable video.
    """
    import av
    from av.container import InputContainer

    if not data:
        raise BadClip("the .mp4 has 0 bytes")
    try:
        with av.open(io.BytesIO(data)) as container:
            assert isinstance(container, InputContainer)
            stream = _open_stream(container)
            frames = int(stream.frames) or sum(packet.size > 0 for packet in container.demux(stream))
            fps = round(float(stream.average_rate or 0), 3)
            return ClipHeader(frames, stream.height, stream.width, fps)
    except (av.FFmpegError, OSError) as error:
        raise BadClip(f"the mp4 cannot be opened, it may be truncated ({error.strerror})") from error


def decode_clip(data: bytes, video: VideoShape) -> Tensor:
    """The first ``video.frames`` frames of an mp4, (3, F, H, W) uint8.

    Raises:
        BadClip: unreadable, truncated, too short or of another size.
    """

    def check(height_px: int, width_px: int) -> None:
        if (height_px, width_px) != (video.height_px, video.width_px):
            raise BadClip(other_size(height_px, width_px, video))

    frames = list(decode_frames(data, range(video.frames), check))
    return rearrange(torch.from_numpy(np.stack(frames)), "f h w c -> c f h w").contiguous()


def decode_frames(
    data: bytes, numbers: Sequence[int], check_size: Callable[[int, int], None] | None = None
) -> Iterator[np.ndarray]:
    """The frames of an mp4 with these ascending numbers, (H, W, 3) uint8 each, as they are decoded.

    Args:
        check_size: told height and width before anything is decoded; may raise ``BadClip``.

    Raises:
        BadClip: unreadable, truncated or too short.
    """
    import av
    from av.container import InputContainer

    wanted, num_decoded, declared = set(numbers), 0, 0
    try:
        with av.open(io.BytesIO(data)) as container:
            assert isinstance(container, InputContainer)
            stream = _open_stream(container)
            declared, convert = int(stream.frames), _converter("rgb24")
            if check_size is not None:
                check_size(stream.height, stream.width)
            for frame in container.decode(stream):
                if frame.is_corrupt:  # the decoder fills what is missing with a guess
                    raise BadClip(f"the mp4 is damaged: frame {num_decoded} does not decode whole")
                if num_decoded in wanted:
                    yield convert(frame).to_ndarray()
                num_decoded += 1
                if num_decoded > numbers[-1]:
                    return
    except (av.FFmpegError, OSError) as error:
        raise BadClip(f"the mp4 cannot be decoded, it may be truncated ({error.strerror})") from error
    if num_decoded < declared:
        raise BadClip(f"the mp4 is truncated: {num_decoded} of {declared} declared frames decode")
    raise BadClip(too_short(num_decoded, VideoShape(numbers[-1] + 1, 0, 0)))
