"""What stage 2, or the upsampler before it, makes of clips of the world, against their own latents decoded.

Clips are (B, 3, F, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sana_train.evaluation import video_stats
from sana_train.evaluation.reconstruction import psnr
from sana_train.protocols import Autoencoder, ClipSource, Reader
from sana_train.types import Batch

_BATCH = 16


def stage_one_like(video: Tensor, autoencoder: Autoencoder) -> Tensor:
    """A clip as stage 1 leaves it at half the size, with what its autoencoder loses, resized."""
    height, width = video.shape[3:]
    small = video_stats.resized(video, height // 2, width // 2)
    return video_stats.resized(autoencoder.decode(autoencoder.encode(small)).float(), height, width)


def compare(
    clips: Mapping[str, Tensor], truth: Tensor, reader: Reader | None, attributes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``<name>/<metric>``, (B,) each: PSNR, the top band's gap and, with a reader, accuracy per attribute."""
    reference = video_stats.top_band_log_power(truth)
    found = {}
    for name, clip in clips.items():
        log_power = video_stats.top_band_log_power(clip)
        found[f"{name}/psnr_db"] = psnr(clip, truth)
        found[f"{name}/spectrum_gap"] = video_stats.spectrum_gap(log_power, reference)
        if reader is not None:  # which knows the world at half the size
            small = video_stats.resized(clip, clip.shape[3] // 2, clip.shape[4] // 2)
            scores = reader.score(reader.read(small), attributes)
            found |= {f"{name}/accuracy/{key}": value.float() for key, value in scores.items()}
    return found


@torch.no_grad()
def heldout_means(
    judge: Callable[[Batch], dict[str, Tensor]], heldout: ClipSource, num_clips: int, device: torch.device
) -> dict[str, float]:
    """Means of what ``judge`` says of the first clips, without holes and what does not apply."""
    rows: dict[str, list[Tensor]] = {}
    total = min(num_clips, len(heldout))
    for first in range(0, total, _BATCH):
        batch = heldout.batch(range(first, min(first + _BATCH, total))).to(device)
        for name, values in judge(batch).items():
            rows.setdefault(name, []).append(values.masked_fill(batch.weight == 0, torch.nan))
    return {name: float(torch.cat(values).nanmean()) for name, values in rows.items()}
