"""The way around an adaptation: the DiT as it was, its clips decoded and encoded again for stage 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sana_train.generation.stage_one import StageOne
from sana_train.types import Batch, VideoShape


@dataclass(frozen=True)
class Source:
    """The space that an adapted DiT comes from.

    Attributes:
        stage_one: samples the DiT as it was before.
        autoencoder: of its space.
    """

    stage_one: StageOne
    autoencoder: Any

    @torch.no_grad()
    def sample(self, context: Tensor, mask: Tensor, batch: Batch, size: VideoShape, seed: int) -> Tensor:
        """Normalised latents (B, C, T, H, W) of encoded captions, of clips of ``size``."""
        shape = self.autoencoder.spec.latent_shape(size)
        return self.stage_one.generate(context, mask, seed, batch.index, shape)

    @torch.no_grad()
    def decode(self, values: Tensor) -> Tensor:
        """Normalised latents -> clips (B, 3, F, H, W) in float32.

        Frames that this autoencoder leaves out at the head of a clip are its first one repeated: another
        space counts them.
        """
        with self.stage_one.precision():
            video = self.autoencoder.decode(self.autoencoder.denormalise(values)).float()
        head = video[:, :, :1].expand(-1, -1, self.autoencoder.spec.skip_frames, -1, -1)
        return torch.cat([head, video], dim=2)
