"""Which frames become a clip: nearest times, whole windows, no scene crossed."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sana_train.cli.schema import ConfigError
from sana_train.data.preparation.cutting import cut_windows
from sana_train.data.preparation.decoding import Timeline
from tests.data.preparation.conftest import rules

EIGHT = Fraction(8)


def timeline(*times_ms: int, end_ms: int) -> Timeline:
    return Timeline(times_ms, Fraction(1, 1000), end_ms)


def steady(num: int, fps: int) -> Timeline:
    return Timeline(tuple(range(num)), Fraction(1, fps), num)


@pytest.mark.parametrize(
    ("cut", "starts"),
    [("start", [0]), ("middle", [8]), ("consecutive", [0, 9])],
    ids=lambda value: str(value),
)
def test_where_clips_start(cut: str, starts: list[int]) -> None:
    windows = cut_windows(steady(26, 8), [0], EIGHT, rules(f"cut={cut}"))
    assert [window.frames for window in windows] == [tuple(range(start, start + 9)) for start in starts]
    assert [window.start_s for window in windows] == [start / 8 for start in starts]


def test_resampling_takes_the_nearest_frame() -> None:
    assert cut_windows(steady(32, 24), [0], EIGHT, rules())[0].frames == tuple(range(0, 27, 3))
    assert cut_windows(steady(8, 6), [0], EIGHT, rules())[0].frames == (0, 1, 1, 2, 3, 4, 4, 5, 6)
    uneven = timeline(0, 10, 130, 240, 390, 600, 610, 700, 880, 1100, end_ms=1200)
    # wanted at          0, 125, 250, 375, 500, 625, 750, 875, 1000
    assert cut_windows(uneven, [0], EIGHT, rules())[0].frames == (0, 2, 3, 4, 5, 6, 7, 8, 9)
    assert cut_windows(timeline(0, 250, end_ms=1125), [0], EIGHT, rules())[0].frames[:3] == (0, 0, 1)  # a tie


def test_no_window_without_all_its_frames() -> None:
    assert cut_windows(steady(8, 8), [0], EIGHT, rules()) == []
    assert len(cut_windows(steady(18, 8), [0], EIGHT, rules())) == 2
    assert len(cut_windows(steady(80, 8), [0], EIGHT, rules("max_clips_per_video=3"))) == 3


def test_no_clip_goes_across_a_scene() -> None:
    windows = cut_windows(steady(40, 8), [0, 12, 15, 26], EIGHT, rules())
    assert [(window.frames[0], window.frames[-1]) for window in windows] == [(0, 8), (15, 23), (26, 34)]
    resampled = cut_windows(steady(40, 12), [0, 20], EIGHT, rules())
    assert [max(w.frames) < 20 or min(w.frames) >= 20 for w in resampled] == [True, True]


@pytest.mark.parametrize(("given", "rate"), [(16, Fraction(16)), (29.97, Fraction(30000, 1001)),
    (23.976, Fraction(24000, 1001)), (12.5, Fraction(25, 2))])  # fmt: skip
def test_rates_are_exact(given: float, rate: Fraction) -> None:
    assert rules(f"fps={given}").rate == rate


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("frames=10", "1 \\+ 8k frames, got 10"),
        ("height_px=40", "does not divide"),
        ("cut=first", "none of start, middle, consecutive"),
        ("fps=0", "fps=0: expected a number above 0"),
        ("crf=60", "crf=60: expected 0 to 51"),
        ("clip_length=9", "no such key"),
        ("heldout_share=1", "from 0 to below 1"),
        ("heldout_share", "expected KEY=VALUE"),
    ],
)
def test_rules_that_cannot_be_followed(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules(word)


def test_motion_thresholds_are_in_order() -> None:
    with pytest.raises(ConfigError, match="above max_motion"):
        rules("min_motion=3", "max_motion=2")
