"""Stage 1 as one piece: captions to normalised latents, with noise from counters.

`cli.sample` and the two-stage evaluation go through it; both, and validation in training, sample with the
same ``Generator``. Legend: B clips, S text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sana_train.generation.generator import Generator
from sana_train.protocols import Denoiser, TextEncoder
from sana_train.utils.rng import SampleRng


class StageOne:
    """Samples of a DiT.

    Args:
        denoiser: in the mode it is to be sampled in.
        text_encoder: whose captions it reads.
        generator: sampler, schedule and guidance.
        device: of the denoiser.
        precision: makes the context that the denoiser runs in.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        text_encoder: TextEncoder,
        generator: Generator,
        device: torch.device,
        precision: Callable[[], AbstractContextManager],
    ) -> None:
        self.denoiser, self.text_encoder, self.generator = denoiser, text_encoder, generator
        self.device, self.precision = device, precision

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context (B, S, D) and mask (B, S), on the device."""
        context, mask = self.text_encoder.encode(captions)
        return context.to(self.device), mask.to(self.device)

    @torch.no_grad()
    def generate(
        self, context: Tensor, mask: Tensor, seed: int, ordinals: Tensor, shape: tuple[int, int, int, int]
    ) -> Tensor:
        """Normalised latents (B, *shape) in float32; clip i is a function of its caption, seed and ordinal.

        Raises:
            ValueError: latents that are not finite.
        """
        noise = SampleRng(seed, ordinals.to(self.device)).normal("samples", shape)
        with self.precision():
            values = self.generator(self.denoiser, context, mask, noise).float()
        if not torch.isfinite(values).all():
            raise ValueError(
                f"latents of clips {ordinals.tolist()} are not finite; are the weights a diverged run's?"
            )
        return values
