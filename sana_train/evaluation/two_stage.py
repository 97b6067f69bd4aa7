"""What stage 2, or the upsampler before it, makes of clips of the world, against their own latents decoded.

Clips are (B, 3, F, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sana_train.evaluation.stages.judge import Judge
from sana_train.protocols import Autoencoder, ClipSource, Reader
from sana_train.types import Batch
from sana_train.utils.resizing import resized

_BATCH = 16
_TOLD = ("psnr_db", "spectrum_gap", "accuracy/")


def stage_one_like(video: Tensor, autoencoder: Autoencoder) -> Tensor:
    """A clip as stage 1 leaves it at half the size, with what its autoencoder loses, resized."""
    height, width = video.shape[3:]
    small = resized(video, height // 2, width // 2)
    return resized(autoencoder.decode(autoencoder.encode(small)).float(), height, width)


def compare(
    clips: Mapping[str, Tensor], truth: Tensor, reader: Reader | None, attributes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``<name>/<metric>``, (B,) each on the CPU: PSNR, the top band's gap and, with a reader, accuracies.

    Of what ``Judge`` measures of clips that all show ``truth``, what a training run is told at its end.
    """
    found = Judge(reader, None, paired=tuple(clips))(clips, truth, attributes, None)
    return {key: value for key, value in found.items() if key.partition("/")[2].startswith(_TOLD)}


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
            is_hole = (batch.weight == 0).to(values.device)
            rows.setdefault(name, []).append(values.masked_fill(is_hole, torch.nan))
    return {name: float(torch.cat(values).nanmean()) for name, values in rows.items()}
