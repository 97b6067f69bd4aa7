"""A picture of clips drawn at random: some frames of each in a row, its key and its caption above."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from torch import Tensor

from sana_train.evaluation.figure_style import INK, MUTED, new_figure

_NUM_COLUMNS = 2
_COLUMN_IN = 7.0
_TEXT_IN = 0.6  # key and two lines of caption
_LINE_PT = 11.0
_CAPTION_COLUMNS = 116  # characters that fit above a row of frames
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
    size_in = _COLUMN_IN * num_columns, (_COLUMN_IN * aspect + _TEXT_IN) * num_rows
    with new_figure(*size_in, path, dpi=110) as figure:
        for place, (key, caption, picture) in enumerate(clips, start=1):
            axes = figure.add_subplot(num_rows, num_columns, place)
            axes.imshow(picture, interpolation="antialiased", aspect="equal")
            axes.set_axis_off()
            lines = textwrap.wrap(caption, _CAPTION_COLUMNS, max_lines=2, placeholder=" ...")
            for row, line in enumerate([key, *lines]):
                is_key = row == 0
                axes.annotate(
                    line,
                    (0, 1),
                    xycoords="axes fraction",
                    xytext=(0, 3 + _LINE_PT * (len(lines) - row)),
                    textcoords="offset points",
                    fontsize=8.5 if is_key else 8,
                    weight="bold" if is_key else "normal",
                    color=INK if is_key else MUTED,
                    parse_math=False,  # a caption may have dollars in it
                )
