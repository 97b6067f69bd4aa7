"""Training the latent upsampler: latents of a clip at half its size to those of the clip itself.

Legend: B clips; lower-case h, w half of H, W.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sana_train.evaluation.two_stage import compare, heldout_means, stage_one_like
from sana_train.evaluation.video_stats import resized
from sana_train.protocols import Autoencoder, ClipSource
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.training.tasks.diffusers_export import publish_diffusers, round_to_bf16
from sana_train.types import Batch
from sana_train.utils.rng import SampleRng


class UpsampleTask:
    """Squared error of normalised latents, both sizes encoded as they are needed.

    Args:
        upsampler: its network is what trains.
        autoencoder: of both sizes, frozen.
        num_heldout_clips: that the result is judged by.
    """

    reads: Literal["pixels"] = "pixels"

    def __init__(self, upsampler: LTX2Upsampler, autoencoder: Autoencoder, num_heldout_clips: int) -> None:
        self.upsampler, self.autoencoder = upsampler, autoencoder
        self.num_heldout_clips = num_heldout_clips
        self.model: nn.Module = upsampler.network.requires_grad_(True).train()
        encoders: list[Any] = [autoencoder]
        self.frozen = [each.requires_grad_(False).eval() for each in encoders]

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"name": "all", "params": list(self.model.parameters())}]

    def step(self, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        """``loss`` (B,)."""
        del rng
        if batch.video is None:
            raise ValueError("the upsampler trains on pixels, but the batch has only latents")
        small, target = self._latents(batch.video)
        return {"loss": (self._upsampled(small) - target).square().flatten(1).mean(1)}

    def _upsampled(self, raw: Tensor) -> Tensor:
        """Raw latents (B, C, T, h, w) -> normalised (B, C, T, H, W) in float32."""
        return self.autoencoder.normalise(self.model(raw).float())

    @torch.no_grad()
    def _latents(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Raw latents at half the size, normalised ones at the whole."""
        with torch.autocast(video.device.type, enabled=False):
            half = resized(video.float(), video.shape[3] // 2, video.shape[4] // 2)
            whole = self.autoencoder.normalise(self.autoencoder.encode(video.float()))
            return self.autoencoder.encode(half), whole

    def export(
        self, directory: Path, train: ClipSource, heldout: ClipSource, record: dict[str, Any]
    ) -> dict[str, float]:
        """Round to bf16, judge on held-out clips, publish a diffusers folder and ``record.json``.

        Returns:
            ``before``: the half-size clip decoded and resized; ``after``: decoded from upsampled latents.
        """
        del train
        round_to_bf16(self.model)
        metrics = self.judge(heldout)
        publish_diffusers(directory, "latent_upsampler", self.model, {**record, "heldout": metrics})
        return metrics

    def judge(self, heldout: ClipSource) -> dict[str, float]:
        """PSNR and the top band's gap to the clip as its own latents decode, means over held-out clips."""
        self.model.eval()
        device = next(self.model.parameters()).device
        return heldout_means(self._judge, heldout, self.num_heldout_clips, device)

    def _judge(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.video is not None
        small, target = self._latents(batch.video)
        truth, after = (self._decode(each) for each in (target, self._upsampled(small)))
        before = stage_one_like(batch.video.float(), self.autoencoder)
        return compare({"before": before, "after": after}, truth, None, {})

    def _decode(self, values: Tensor) -> Tensor:
        return self.autoencoder.decode(self.autoencoder.denormalise(values)).float()
