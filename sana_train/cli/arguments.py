"""Types of command-line arguments that several commands take."""

from __future__ import annotations

import argparse
import re

from sana_train.types import VideoShape


def positive(text: str) -> int:
    """A whole number from 1 on."""
    return _at_least(1, text)


def count(text: str) -> int:
    """A whole number from 0 on."""
    return _at_least(0, text)


def video_size(text: str) -> VideoShape:
    """``704x1280x81``: height, width and frames of clips."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTHxFRAMES such as 704x1280x81, got {text}")
    height_px, width_px, frames = map(int, match.groups())
    return VideoShape(frames, height_px, width_px)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")
    return int(text)
