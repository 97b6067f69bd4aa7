"""A picture of clips drawn at random: some frames of each in a row, its key and its caption above."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from torch import Tensor

from sana_train.evaluation.figure_style import INK, MUTED, new_figure

_NUM_COLUMNS = 2
_PICTURE_IN = 6.8  # width of a row of frames
_MARGIN_IN = 0.12
_LINE_IN = 0.155
_NUM_LINES = 3  # key and two lines of caption
_KEY_CHARACTERS, _CAPTION_CHARACTERS = 92, 112  # that fit above a row of frames
_GAP = 0.02  # between frames, of their width


def frame_row(video: Tensor, num_frames: int) -> np.ndarray:
    """Frames from first to last of a clip (3, F, H, W) uint8 side by side; uint8 (h, w, 3)."""
    chosen = np.linspace(0, video.shape[1] - 1, num_frames).round().astype(int)
    frames = rearrange(video[:, chosen], "rgb f h w -> f h w rgb").numpy()
    gap = max(1, round(_GAP * frames.shape[2]))
    padded = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return rearrange(padded, "f h w rgb -> h (f w) rgb")[:, :-gap]


def contact_sheet(path: Path, clips: Sequence[tuple[str, str, np.ndarray]]) -> None:
    """Write ``path``, a PNG.

    Args:
        clips: (key, caption, picture by ``frame_row``) of each.
    """
    num_columns = min(_NUM_COLUMNS, len(clips))
    num_rows = -(-len(clips) // num_columns)
    aspect = max(picture.shape[0] / picture.shape[1] for _, _, picture in clips)
    text_in, picture_in = _LINE_IN * _NUM_LINES + 0.05, _PICTURE_IN * aspect
    row_in, column_in = text_in + picture_in + _MARGIN_IN, _PICTURE_IN + _MARGIN_IN
    width_in, height_in = column_in * num_columns + _MARGIN_IN, row_in * num_rows + _MARGIN_IN
    with new_figure(width_in, height_in, path, dpi=110) as figure:
        figure.set_layout_engine("none")  # it would shrink the pictures until the longest text fits
        for place, (key, caption, picture) in enumerate(clips):
            row, column = divmod(place, num_columns)
            left, bottom = _MARGIN_IN + column * column_in, height_in - (row + 1) * row_in
            axes = figure.add_axes(
                (left / width_in, bottom / height_in, _PICTURE_IN / width_in, picture_in / height_in)
            )
            axes.imshow(picture, interpolation="antialiased", aspect="equal")
            axes.set_axis_off()
            for line, (text, style) in enumerate(_lines(key, caption)):
                top = bottom + picture_in + _LINE_IN * (_NUM_LINES - line)
                figure.text(
                    left / width_in,
                    top / height_in,
                    text,
                    va="top",
                    parse_math=False,  # a caption may have dollars in it
                    **style,
                )


def _lines(key: str, caption: str) -> list[tuple[str, dict[str, Any]]]:
    """Texts above a picture with their styles, ending right above it."""
    lines = textwrap.wrap(caption, _CAPTION_CHARACTERS, max_lines=_NUM_LINES - 1, placeholder=" ...")
    title = key if len(key) <= _KEY_CHARACTERS else "..." + key[3 - _KEY_CHARACTERS :]
    above = [""] * (_NUM_LINES - 1 - len(lines))
    texts = [*above, title, *lines]
    bold = {"fontsize": 8.5, "weight": "bold", "color": INK}
    plain = {"fontsize": 8, "color": MUTED}
    return [(text, bold if place <= len(above) else plain) for place, text in enumerate(texts)]
