"""What is measured of every clip of every column.

Any column is read by the reader and held against the held-out clip's spectrum; a column that shows the
held-out clip itself is compared with it pixel by pixel, too. Legend: B clips; metrics are (B,), NaN where one
does not apply.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sana_train.evaluation import video_stats
from sana_train.evaluation.clip_score import ClipScore
from sana_train.evaluation.convergence.samples import group_scores
from sana_train.evaluation.lpips_metric import PerceptualDistance
from sana_train.evaluation.reconstruction import masked_psnr, psnr, ssim
from sana_train.evaluation.stages.columns import FACTOR, PAIRED
from sana_train.protocols import Reader
from sana_train.utils.resizing import resized


@dataclass(frozen=True)
class Judge:
    """Measures.

    Attributes:
        reader: reads attributes off clips at stage 1's size; None where there is no such thing.
        perceptual: None where LPIPS or its trunk's weights are not at hand.
        paired: columns that show the held-out clip itself.
        clip_score: None where no CLIP is given.
    """

    reader: Reader | None
    perceptual: PerceptualDistance | None
    paired: Collection[str] = PAIRED
    clip_score: ClipScore | None = None

    @torch.no_grad()
    def __call__(
        self,
        clips: Mapping[str, Tensor],
        truth: Tensor,
        attributes: Mapping[str, Tensor],
        textured: Tensor | None,
        captions: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """``<column>/<metric>`` on the CPU.

        Args:
            clips: column -> (B, 3, F, H, W).
            truth: the held-out clips, likewise.
            attributes: of the captions; may be empty.
            textured: (B, 1, F, H, W) bool, where the held-out clips are textured; None: not known.
            captions: B of them, for the CLIP score; empty: not known.
        """
        reference = video_stats.top_band_log_power(truth)
        found: dict[str, Tensor] = {}
        for column, clip in clips.items():
            spectrum = video_stats.top_band_log_power(clip)
            metrics = {"spectrum_gap": video_stats.spectrum_gap(spectrum, reference)}
            metrics |= self.read(clip, attributes)
            if self.clip_score is not None and captions:
                metrics["clip_score"] = self.clip_score(clip, captions)
            if column in self.paired:
                metrics |= self._compared(clip, truth, textured)
            found |= {f"{column}/{name}": value.float().cpu() for name, value in metrics.items()}
        return found

    def read(self, clip: Tensor, attributes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is read of clips at stage 1's size, (B,) each; nothing without reader or attributes."""
        if self.reader is None or not attributes:
            return {}
        small = resized(clip, clip.shape[3] // FACTOR, clip.shape[4] // FACTOR)
        return group_scores(small, attributes, self.reader)

    def _compared(self, clip: Tensor, truth: Tensor, textured: Tensor | None) -> dict[str, Tensor]:
        bands = video_stats.band_psnr(clip, truth)
        metrics = {"psnr_db": psnr(clip, truth), "ssim": ssim(clip, truth)}
        metrics |= {f"{name}_psnr_db": value for name, value in bands.items()}  # motion: of frame differences
        if textured is not None:
            metrics["textured_psnr_db"] = masked_psnr(clip, truth, textured)
        if self.perceptual is not None:
            metrics["lpips"] = self.perceptual(clip, truth)
        return metrics
