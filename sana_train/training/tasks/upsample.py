"""Training the latent upsampler: latents of a clip at half its size to those of the clip itself.

Legend: B clips; lower-case h, w half of H, W.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sana_train.evaluation.two_stage import compare, heldout_means
from sana_train.protocols import Autoencoder, ClipSource
from sana_train.refiners.pairs import StagePairs, halved
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.training.tasks.diffusers_export import publish_diffusers, round_to_bf16
from sana_train.types import Batch
from sana_train.utils.compiling import compiled_function
from sana_train.utils.resizing import resized
from sana_train.utils.rng import SampleRng


class UpsampleTask:
    """Squared error of normalised latents; both sizes are encoded once.

    Args:
        upsampler: its network is what trains.
        autoencoder: of both sizes, frozen.
        num_heldout_clips: that the result is judged by.
        compile_mode: ``torch.compile`` mode of the loss, or ``none``.

    Raises:
        ValueError: no upsampler.
    """

    reads: Literal["latents"] = "latents"

    def __init__(
        self,
        upsampler: LTX2Upsampler | None,
        autoencoder: Autoencoder,
        num_heldout_clips: int,
        compile_mode: Literal["none", "default", "reduce-overhead"],
    ) -> None:
        if upsampler is None:
            raise ValueError("upsampler=null leaves nothing to train; choose one with upsampler=<option>")
        self.upsampler, self.autoencoder = upsampler, autoencoder
        self.encoder: Autoencoder = StagePairs(autoencoder, "repeat")
        self.num_heldout_clips = num_heldout_clips
        self.model: nn.Module = upsampler.network.requires_grad_(True).train()
        encoders: list[Any] = [autoencoder]
        self.frozen = [each.requires_grad_(False).eval() for each in encoders]
        self._loss: Callable[[Tensor, Tensor], Tensor] = self._plain_loss
        if compile_mode != "none":
            self._loss = compiled_function(self._plain_loss, compile_mode)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"name": "all", "params": list(self.model.parameters())}]

    def step(self, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        """``loss`` (B,)."""
        del rng
        small, target = self._latents(batch)
        return {"loss": self._loss(small, target)}

    def _plain_loss(self, small: Tensor, target: Tensor) -> Tensor:
        return (self._upsampled(small) - target).square().flatten(1).mean(1)

    def _upsampled(self, raw: Tensor) -> Tensor:
        """Raw latents (B, C, T, h, w) -> normalised (B, C, T, H, W) in float32."""
        return self.autoencoder.normalise(self.model(raw).float())

    @torch.no_grad()
    def _latents(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Raw latents at half the size, normalised ones at the whole, in float32."""
        pairs = batch.latents
        if pairs is None:
            assert batch.video is not None
            with torch.autocast(batch.video.device.type, enabled=False):
                pairs = self.encoder.encode(batch.video.float())
        whole, repeated = pairs.float().chunk(2, dim=1)
        return halved(repeated), self.autoencoder.normalise(whole)

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
        small, target = self._latents(batch)
        truth, after = (self._decode(each) for each in (target, self._upsampled(small)))
        before = resized(self.autoencoder.decode(small).float(), truth.shape[3], truth.shape[4])
        return compare({"before": before, "after": after}, truth, None, {})

    def _decode(self, values: Tensor) -> Tensor:
        return self.autoencoder.decode(self.autoencoder.denormalise(values)).float()
