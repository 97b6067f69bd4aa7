"""Pictures and films of clips side by side.

Legend: n prompts, F frames. Clips are (n, 3, F, H, W) in [-1, 1]; columns map a label to clips of
the same prompts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from torch import Tensor

from sana_train.data.video import encode_clip, to_uint8
from sana_train.evaluation.figure_style import INK, MUTED, new_figure
from sana_train.evaluation.video_stats import comparison_frames
from sana_train.utils.files import publish_file

_GAP_PX = 4


def frame_grid(columns: Sequence[Tensor], frames: Sequence[int]) -> np.ndarray:
    """One prompt's clips (3, F, H, W) as a picture: a column per clip, a row per frame; uint8 (h, w, 3)."""
    rows = [torch.stack([to_uint8(clip[:, frame]) for clip in columns]) for frame in frames]
    tiles = torch.stack(rows).cpu()  # (rows, columns, 3, H, W)
    tiles = torch.nn.functional.pad(tiles, (0, _GAP_PX, 0, _GAP_PX), value=255)
    picture = rearrange(tiles, "r c rgb h w -> (r h) (c w) rgb")
    return picture[:-_GAP_PX, :-_GAP_PX].numpy()


def show_grid(axes: Axes, picture: np.ndarray, labels: Sequence[str], *, with_labels: bool = True) -> None:
    """Draw a ``frame_grid`` with its column labels above."""
    axes.imshow(picture, interpolation="catrom", aspect="equal")
    axes.set_axis_off()
    if with_labels:
        width = (picture.shape[1] + _GAP_PX) / len(labels)
        for i, label in enumerate(labels):
            x = i * width + (width - _GAP_PX) / 2
            axes.text(x, -0.04 * width, label, ha="center", va="bottom", fontsize=9, color=INK)


def sample_strip(
    path: Path, prompts: Sequence[str], columns: Mapping[str, Tensor], num_frames: int = 3
) -> None:
    """Per prompt: the caption, then one column per model or step and one row per frame.

    Args:
        columns: label -> clips; usually source model, step 0, ..., last. A clip of 1 + 8k frames is
            shown without frame 0, which the source autoencoder does not decode.
        num_frames: shown per clip, evenly spaced from first to last.
    """
    clips = _checked(prompts, columns)
    first = next(iter(clips.values()))
    frames = np.linspace(0, first.shape[2] - 1, num_frames).round().astype(int).tolist()
    width_in = 10.0
    label_pt = 13 + 0.04 * 72 * width_in / len(clips)  # what ``show_grid`` puts between caption and picture
    row_in = width_in / len(clips) * num_frames * first.shape[3] / first.shape[4] + 0.45
    with new_figure(width_in, row_in * len(prompts), path, dpi=110) as figure:
        for i, prompt in enumerate(prompts):
            axes = figure.add_subplot(len(prompts), 1, i + 1)
            picture = frame_grid([clip[i] for clip in clips.values()], frames)
            show_grid(axes, picture, list(clips))
            axes.set_title(textwrap.fill(prompt, 118), fontsize=9, color=MUTED, weight="normal", pad=label_pt)


def side_by_side_video(path: Path, prompts: Sequence[str], columns: Mapping[str, Tensor], fps: int) -> None:
    """The same as a film (H.264, 4:2:0 so that browsers play it): a row per prompt, labels on top."""
    clips = _checked(prompts, columns)
    tiles = torch.stack([to_uint8(clip) for clip in clips.values()]).cpu()  # (columns, n, 3, F, H, W)
    tiles = torch.nn.functional.pad(tiles, (0, _GAP_PX, 0, _GAP_PX), value=255)
    film = rearrange(tiles, "c n rgb f h w -> rgb f (n h) (c w)")
    header = torch.from_numpy(_header(list(clips), tiles.shape[-1]))
    header = rearrange(header, "h w rgb -> rgb 1 h w").expand(-1, film.shape[1], -1, -1)
    film = torch.cat([header, film], dim=2)
    film = torch.nn.functional.pad(film, (0, film.shape[3] % 2, 0, film.shape[2] % 2), value=255)
    with publish_file(path) as scratch:
        scratch.write_bytes(encode_clip(film, fps, crf=16, pixel_format="yuv420p"))


def _header(labels: Sequence[str], column_px: int) -> np.ndarray:
    """A white band with one centred label per column, uint8 (h, w, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    font_file = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(font_file), max(10, column_px // 10))
    height = max(10, column_px // 10) * 2
    image = Image.new("RGB", (column_px * len(labels), height - height % 2), "white")
    draw = ImageDraw.Draw(image)
    for i, label in enumerate(labels):
        centre = (i * column_px + (column_px - _GAP_PX) / 2, image.height / 2)
        draw.text(centre, label, fill=INK, font=font, anchor="mm")
    return np.array(image)


def _checked(prompts: Sequence[str], columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Clips without frame 0 of a 1 + 8k clip, all of one shape."""
    if not prompts or not columns:
        raise ValueError(f"a strip needs prompts and columns, got {len(prompts)} and {len(columns)}")
    clips = {label: comparison_frames(clip) for label, clip in columns.items()}
    shapes = {label: tuple(clip.shape) for label, clip in clips.items()}
    if len(set(shapes.values())) > 1 or next(iter(shapes.values()))[0] != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many clips of one shape per column, got {shapes}")
    return clips
