"""Classifier-free guidance (Ho and Salimans 2022): velocity callables in, one velocity callable out."""

from __future__ import annotations

import torch
from torch import Tensor

from sana_train.flow.samplers import Velocity


class ClassifierFreeGuidance:
    """v = v_null + scale * (v_caption - v_null).

    Args:
        scale: 1 is the captioned branch alone, 0 the null branch alone, above 1 strengthens the caption.
    """

    def __init__(self, scale: float = 4.5) -> None:
        if not scale >= 0.0:
            raise ValueError(f"the guidance scale must not be negative, got {scale}; 1 turns guidance off")
        self.scale = scale

    @property
    def needs_null(self) -> bool:
        """Whether the null branch is worth computing."""
        return self.scale != 1.0

    def from_doubled(self, doubled: Velocity) -> Velocity:
        """Guided velocity from one callable over (2B, ...) latents, the captioned half first.

        One larger call per evaluation, faster where a batch does not fill the device. ``doubled``
        holds captions for the first B samples and null contexts for the last B.
        """

        def guided(latents: Tensor, t: Tensor) -> Tensor:
            both = doubled(torch.cat([latents, latents]), torch.cat([t, t]))
            captioned, null = both.chunk(2)
            return null + self.scale * (captioned - null)

        return guided
