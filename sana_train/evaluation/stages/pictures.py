"""Columns side by side, each clip above a quarter of it at four times the size.

A film is at most as wide as a page can show, so that of a large clip the crop is what shows its pixels.
Legend: F frames, H/W of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sana_train.data.video import to_uint8
from sana_train.evaluation.strips import sample_strip, side_by_side_video
from sana_train.utils.resizing import resized

CROP = 4  # times as large as it is
_MAX_WIDTH_PX = 640


def film_of(clips: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Clips (3, F, H, W) in [-1, 1] of one caption -> uint8 (3, F, 2h, w): the whole above the crop."""
    first = next(iter(clips.values()))
    height, width = first.shape[2:]
    shown_w = min(width, _MAX_WIDTH_PX)
    shown_h = height * shown_w // width // 2 * 2
    top, left = _busiest(clips)
    films = {}
    for name, clip in clips.items():
        whole = clip[None] if width == shown_w else resized(clip[None], shown_h, shown_w)
        part = clip[None, :, :, top : top + height // CROP, left : left + width // CROP].float()
        size = (part.shape[2], shown_h, shown_w)
        films[name] = to_uint8(torch.cat([whole.float(), F.interpolate(part, size)], dim=3)[0]).cpu()
    return films


def _busiest(clips: Mapping[str, Tensor]) -> tuple[int, int]:
    """Top and left, in px, of the crop with the most detail over all columns, in half-crop steps."""
    first = next(iter(clips.values()))
    height, width = first.shape[2] // CROP, first.shape[3] // CROP
    middle = first.shape[1] // 2
    frames = torch.stack([clip[:, middle].float().mean(0) for clip in clips.values()])  # (columns, H, W)
    detail = frames.diff(dim=1)[:, :, :-1].abs() + frames.diff(dim=2)[:, :-1].abs()
    sums = F.avg_pool2d(
        detail.mean(0)[None, None], (height - 1, width - 1), (max(1, height // 2), max(1, width // 2))
    )[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return row * max(1, height // 2), column * max(1, width // 2)


def draw(out: Path, captions: Sequence[str], films: Mapping[str, Tensor], fps: float) -> list[str]:
    """Write stages.png and stages.mp4, and a film of each caption; the names of these, in order."""
    labels = {name.replace("_", " "): film for name, film in films.items()}
    sample_strip(out / "stages.png", captions, labels, num_frames=1)
    rate = max(1, round(fps))
    side_by_side_video(out / "stages.mp4", captions, labels, rate)
    names = []
    for number, caption in enumerate(captions):
        names.append(f"shown/{number:05d}.mp4")
        one = {name: film[number : number + 1] for name, film in labels.items()}
        side_by_side_video(out / names[-1], [caption], one, rate)
    return names
