"""How much moves in a clip, without optical flow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MEASURE = "luma change in 0.5 s, percent"
_GAP_S = 0.5  # SANA-Video's flow is taken between frames this far apart, too
_SHORT_SIDE_PX = 32
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def motion_score(video: Tensor, fps: float) -> float:
    """``100 * mean |Y[i + g] - Y[i]| / 255``: by how much a place's brightness changes in half a second.

    ``Y`` is the luma (0.299 R + 0.587 G + 0.114 B) of the clip averaged over blocks to 32 px on its short
    side, ``g = max(1, round(0.5 s * fps))`` frames, at most to the clip's end; the mean is over all ``i``,
    rows and columns. Percent of the range from black to white, 0 to 100; a still picture is at 0. It grows
    with speed, with contrast and with changes of light, and is no optical flow: thresholds for NVlabs'
    ``_unimatch`` mean nothing here.

    Args:
        video: (3, F, H, W) uint8.
        fps: of its frames.
    """
    frames = video.shape[1]
    if frames < 2:
        return 0.0
    weights = torch.tensor(_LUMA).view(1, 3, 1, 1)
    scale = min(1.0, _SHORT_SIDE_PX / min(video.shape[2:]))
    height, width = (max(1, round(side * scale)) for side in video.shape[2:])
    small = [
        (F.adaptive_avg_pool2d(video[:, frame][None].float(), (height, width)) * weights).sum(dim=1)
        for frame in range(frames)
    ]  # frame by frame: a clip in float is large
    luma = torch.cat(small)  # (F, h, w)
    gap = min(frames - 1, max(1, round(_GAP_S * fps)))
    return round(float((luma[gap:] - luma[:-gap]).abs().mean()) * 100 / 255, 4)
