"""A video's frames as they are meant to be seen: in order, at their times, upright, with square pixels."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sana_train.data.video import BadClip

if TYPE_CHECKING:
    from av import VideoFrame

_STEADY = Fraction(1, 4)  # of a frame's length: containers in milliseconds round 16.7 to 16 or 17


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown.

    Attributes:
        pts: of each frame in order of time, in units of ``time_base``.
        time_base: s.
        end: of the last frame, in the same units.
    """

    pts: tuple[int, ...]
    time_base: Fraction
    end: int

    def time_s(self, index: int) -> Fraction:
        """Of a frame, from the first one on; of the index behind the last one the end."""
        pts = self.end if index == len(self.pts) else self.pts[index]
        return (pts - self.pts[0]) * self.time_base

    @property
    def is_steady(self) -> bool:
        """Whether all frames are shown for about the same time."""
        gaps = np.diff(self.pts)
        return len(gaps) == 0 or bool(
            abs(gaps - np.median(gaps)).max() <= _STEADY * Fraction(np.median(gaps))
        )


@dataclass(frozen=True)
class Header:
    """A video before anything but its first frame is decoded.

    Attributes:
        height_px: as displayed, so after turning and with square pixels.
        width_px: the same.
        timeline: of its frames.
        average_fps: as the container says it.
        is_plain: whether an mp4's bytes can be a clip as they are: H.264 and nothing else, upright, square.
    """

    height_px: int
    width_px: int
    timeline: Timeline
    average_fps: Fraction
    is_plain: bool

    @property
    def rate(self) -> Fraction:
        """Frames per second where they are steady."""
        timeline = self.timeline
        if len(timeline.pts) < 2:
            return self.average_fps
        measured = (len(timeline.pts) - 1) / timeline.time_s(len(timeline.pts) - 1)
        is_said = abs(self.average_fps - measured) <= measured / 1000
        return self.average_fps if is_said else measured.limit_denominator(1001)


@contextmanager
def _opened(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """(container, video stream).

    Raises:
        BadClip: there is none, or what goes wrong with it while it is open.
    """
    import av

    try:
        with av.open(file) as container:
            streams = [s for s in container.streams.video if not s.disposition & _attached_picture()]
            if not streams:
                raise BadClip("the file has no video stream")
            if streams[0].codec_context is None:
                raise BadClip("the video's codec cannot be decoded, or its header is incomplete")
            streams[0].thread_type = "NONE"  # parallelism is over videos
            yield container, streams[0]
    except (av.FFmpegError, OSError) as error:
        raise BadClip(f"the video cannot be decoded, it may be truncated ({error.strerror})") from error


def _attached_picture() -> Any:
    """The cover of a song is a video stream, too."""
    from av.stream import Disposition

    return Disposition.attached_pic


def read_header(file: BinaryIO) -> Header:
    """All but the pixels; every packet is read and the first frame decoded.

    Raises:
        BadClip: no video, no frames, or no times.
    """
    if not file.read(1):
        raise BadClip("the file has 0 bytes")
    file.seek(0)
    with _opened(file) as (container, stream):
        timeline = _timeline(container, stream)
        average_fps = Fraction(stream.average_rate or 0)
        is_alone = len(container.streams) == 1 and "mp4" in container.format.name.split(",")
        is_h264 = stream.codec_context.name == "h264"
    file.seek(0)
    with _opened(file) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise BadClip("not one frame can be decoded")
        upright, is_turned = _orientation(frame)
        square = _square_size(frame, stream)
    height_px, width_px = upright(np.empty((*square, 1))).shape[:2]
    is_plain = is_alone and is_h264 and not is_turned and square == (frame.height, frame.width)
    return Header(height_px, width_px, timeline, average_fps, is_plain)


def _timeline(container: Any, stream: Any) -> Timeline:
    pts: list[int] = []
    lengths: list[int] = []
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:  # the end, or what an edit list leaves out
            continue
        if packet.pts is None:
            raise BadClip("its frames have no times")
        pts.append(packet.pts)
        lengths.append(packet.duration or 0)
    if not pts:
        raise BadClip("there are no frames in the video stream")
    order = np.argsort(pts, kind="stable")
    ordered = [pts[i] for i in order]
    if len(set(ordered)) < len(ordered):
        raise BadClip("several of its frames have the same time")
    length = lengths[order[-1]] or (int(np.median(np.diff(ordered))) if len(ordered) > 1 else 1)
    return Timeline(tuple(ordered), Fraction(stream.time_base), ordered[-1] + length)


def _square_size(frame: VideoFrame, stream: Any) -> tuple[int, int]:
    """Height and width of a stored frame once its pixels are square; the wider side is kept."""
    aspect = Fraction(
        stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
    ) or Fraction(1)
    if aspect >= 1:
        return frame.height, round(frame.width * aspect)
    return round(frame.height / aspect), frame.width


def _orientation(frame: VideoFrame) -> tuple[Callable[[np.ndarray], np.ndarray], bool]:
    """How (H, W, C) pixels are turned and mirrored for display, and whether they are at all.

    The display matrix has nine 16.16 and 2.30 fixed-point numbers, (x', y') = (a x + c y, b x + d y), of
    ISO/IEC 14496-12; a phone held upright writes one of a quarter turn.

    Raises:
        BadClip: another angle, or a scale.
    """
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return np.asarray, False
    a, b, _, c, d = (round(each / 2**16, 3) for each in struct.unpack("<9i", bytes(side_data))[:5])
    if (abs(a), abs(d), b, c) == (1, 1, 0, 0):
        return (lambda pixels: pixels[:: int(d), :: int(a)]), (a, d) != (1, 1)
    if (a, d, abs(b), abs(c)) == (0, 0, 1, 1):
        return (lambda pixels: pixels.transpose(1, 0, 2)[:: int(b), :: int(c)]), True
    raise BadClip(f"its display matrix is not of quarter turns: {a:g} {b:g} {c:g} {d:g}")


def decode_frames(file: BinaryIO, timeline: Timeline) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
    """(index in ``timeline``, a function that gives the pixels, (H, W, 3) uint8, upright) of every frame.

    Sides are those of the stored frame, turned: what makes pixels square is left to whoever resizes.

    Raises:
        BadClip: a frame that is damaged, or at no time of the timeline.
    """
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    index_of = {pts: index for index, pts in enumerate(timeline.pts)}
    with _opened(file) as (container, stream):
        for frame in container.decode(stream):
            index = index_of.get(frame.pts)
            if index is None:
                raise BadClip("the video is damaged: a frame is at a time that no packet has")
            if frame.is_corrupt:  # the decoder fills what is missing with a guess
                raise BadClip(f"the video is damaged: frame {index} does not decode whole")
            upright, _ = _orientation(frame)

            def pixels(frame: VideoFrame = frame, upright: Callable[..., np.ndarray] = upright) -> np.ndarray:
                return upright(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())

            yield index, pixels


def fit(pixels: np.ndarray, square_px: tuple[int, int], target_px: tuple[int, int]) -> Tensor:
    """Resized until it covers the target, antialiased, then cropped around its centre.

    Args:
        pixels: (H, W, 3) uint8, whose pixels need not be square.
        square_px: height and width it is displayed at.
        target_px: height and width wanted.

    Returns:
        (3, H, W) uint8 of the target's size.
    """
    (height, width), (to_height, to_width) = square_px, target_px
    # Exact in whole numbers: a float may round a side to one pixel less than the target.
    if to_height * width >= to_width * height:
        size = to_height, max(to_width, round(Fraction(to_height * width, height)))
    else:
        size = max(to_height, round(Fraction(to_width * height, width))), to_width
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[
        None
    ]  # channels last: the fast path
    if tuple(image.shape[-2:]) != size:
        image = F.interpolate(image, size=size, mode="bicubic", antialias=True)
    top, left = (size[0] - to_height) // 2, (size[1] - to_width) // 2
    return image[0, :, top : top + to_height, left : left + to_width]
