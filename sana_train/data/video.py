"""H.264 clips in memory: bytes of an mp4 to pixels and back.

Clips are kept as 4:4:4: on 128 px stripes of six pixels, halving the chroma costs 20 dB and the
colours with it. For a browser, which plays 4:2:0 only, encode with ``pixel_format="yuv420p"``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
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
    fps: int,
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


def count_frames(data: bytes) -> int:
    """Frames that an mp4's header declares or, where that leaves them open, its packets; nothing is decoded.

    A fragmented mp4, which is written as it is recorded, declares 0 frames.

    Raises:
        BadClip: the bytes are not a readable video.
    """
    import av
    from av.container import InputContainer

    try:
        with av.open(io.BytesIO(data)) as container:
            assert isinstance(container, InputContainer)
            stream = _open_stream(container)
            return int(stream.frames) or sum(packet.size > 0 for packet in container.demux(stream))
    except (av.FFmpegError, OSError) as error:
        raise BadClip(f"the mp4 cannot be opened, it may be truncated ({error})") from error


def decode_clip(data: bytes, video: VideoShape) -> Tensor:
    """The first ``video.frames`` frames of an mp4, (3, F, H, W) uint8.

    Raises:
        BadClip: unreadable, truncated, too short or of another size.
    """
    import av
    from av.container import InputContainer

    frames: list[np.ndarray] = []
    try:
        with av.open(io.BytesIO(data)) as container:
            assert isinstance(container, InputContainer)
            stream = _open_stream(container)
            declared, convert = int(stream.frames), _converter("rgb24")
            if (stream.height, stream.width) != (video.height_px, video.width_px):
                raise BadClip(
                    f"the clip is {stream.height}x{stream.width} px, expected "
                    f"{video.height_px}x{video.width_px} px"
                )
            for frame in container.decode(stream):
                if frame.is_corrupt:  # the decoder fills what is missing with a guess
                    raise BadClip(f"frame {len(frames)} of the mp4 is damaged")
                frames.append(convert(frame).to_ndarray())
                if len(frames) == video.frames:
                    break
    except (av.FFmpegError, OSError) as error:
        raise BadClip(f"the mp4 cannot be decoded, it may be truncated ({error})") from error
    if len(frames) < video.frames:
        if len(frames) < declared:
            raise BadClip(f"the mp4 is truncated: {len(frames)} of {declared} declared frames decode")
        raise BadClip(f"the clip is too short: {len(frames)} frames, expected {video.frames}")
    return rearrange(torch.from_numpy(np.stack(frames)), "f h w c -> c f h w").contiguous()
