"""Which frames of a video make which clip."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sana_train.data.preparation.decoding import Timeline
from sana_train.data.preparation.rules import PrepareRules

_HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Window:
    """One clip of a video.

    Attributes:
        start_s: from the video's first frame.
        frames: indices of the video's frames, in order, as many as the clip has; one may come more than once.
    """

    start_s: float
    frames: tuple[int, ...]


def num_frames_between(start_s: Fraction, end_s: Fraction, fps: Fraction) -> int:
    """Frames that show a stretch of time at ``fps``, rounded: times in a container are rounded, too."""
    return int((end_s - start_s) * fps + _HALF)


def cut_windows(
    timeline: Timeline, scenes: Sequence[int], fps: Fraction, rules: PrepareRules
) -> list[Window]:
    """The clips of a video, in order of time, none across the start of a scene.

    Frame ``i`` of a clip is the one whose time is nearest to ``start + i / fps``, of two as near the earlier.

    Args:
        scenes: index of each scene's first frame.
        fps: of the clips.
    """
    windows: list[Window] = []
    for first, stop in zip(scenes, [*scenes[1:], len(timeline.pts)]):
        start_s = timeline.time_s(first)
        times_s = [timeline.time_s(index) for index in range(first, stop)]
        num_there = num_frames_between(start_s, timeline.time_s(stop), fps)
        for head in window_heads(num_there, rules):
            wanted_s = [start_s + Fraction(head + i) / fps for i in range(rules.frames)]
            frames = tuple(first + _nearest(times_s, each) for each in wanted_s)
            windows.append(Window(round(float(wanted_s[0]), 6), frames))
    return windows[: rules.max_clips_per_video]


def window_heads(num_there: int, rules: PrepareRules) -> range:
    """Where clips start in ``num_there`` frames at their own rate."""
    num_fitting = num_there // rules.frames
    if num_fitting == 0:
        return range(0)
    if rules.cut == "consecutive":
        return range(0, num_fitting * rules.frames, rules.frames)
    head = (num_there - rules.frames) // 2 if rules.cut == "middle" else 0
    return range(head, head + 1)


def _nearest(times_s: Sequence[Fraction], wanted_s: Fraction) -> int:
    after = min(bisect_right(times_s, wanted_s), len(times_s) - 1)
    before = max(after - 1, 0)
    return after if times_s[after] - wanted_s < wanted_s - times_s[before] else before
