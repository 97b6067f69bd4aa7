"""Small stand-ins: a denoiser that is optimal for unit Gaussian latents, an autoencoder of flat
cells, and a reader that sees which colour channel is brightest."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from sana_train.evaluation.convergence.heldout import HeldOut
from sana_train.types import LatentSpec


class GaussianDenoiser(nn.Module):
    """Best velocity for latents ~ N(0, I), plus ``bias``; counts how often captions are prepared."""

    latent_channels = 3

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))
        self.register_buffer("null_context", torch.zeros(2, 4))
        self.num_prepared = 0
        self.was_training: list[bool] = []

    def prepare(self, context: Tensor, mask: Tensor) -> Tensor:
        self.num_prepared += 1
        return context

    def forward(self, latents: Tensor, t: Tensor, state: Tensor, positions: Tensor | None = None) -> Tensor:
        assert len(state) == len(latents)
        self.was_training.append(self.training)
        t = t.reshape(-1, 1, 1, 1, 1)
        noise = t * latents / ((1 - t) ** 2 + t**2)
        return (noise - latents) / (1 - t) + self.bias


class CellAutoencoder:
    """A latent cell is a flat 32 px square for its stretch of frames; statistics are mean 0, scale 2."""

    spec = LatentSpec(channels=3, stride_t=8, stride_h=32, stride_w=32)

    def encode(self, video: Tensor) -> Tensor:
        return video[:, :, ::8, ::32, ::32]

    def decode(self, latents: Tensor) -> Tensor:
        frames = torch.cat([latents[:, :, :1], latents[:, :, 1:].repeat_interleave(8, 2)], dim=2)
        return frames.repeat_interleave(32, 3).repeat_interleave(32, 4).clamp(-1, 1)

    def normalise(self, latents: Tensor) -> Tensor:
        return latents * 2

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents / 2

    def fingerprint(self) -> str:
        return "cells"


class BrightestReader:
    """``shape`` is the brightest channel of the clip, ``colour`` that of its last frame."""

    groups: Mapping[str, tuple[str, ...]] = {"semantic": ("shape",), "colour": ("colour",)}
    chance: Mapping[str, float] = {"shape": 1 / 3, "colour": 1 / 3}
    weaknesses: Mapping[str, float] = {}

    def read(self, video: Tensor) -> dict[str, Tensor]:
        return {
            "shape": video.mean((2, 3, 4)).argmax(1),
            "colour": video[:, :, -1].mean((2, 3)).argmax(1),
        }

    def score(self, read: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: torch.where(truth[name] < 0, torch.nan, (read[name] == truth[name]).float())
            for name in read
        }


@pytest.fixture
def autoencoder() -> CellAutoencoder:
    return CellAutoencoder()


@pytest.fixture
def reader() -> BrightestReader:
    return BrightestReader()


@pytest.fixture
def heldout(autoencoder: CellAutoencoder, reader: BrightestReader) -> HeldOut:
    """Twelve clips of unit Gaussian latents, (3, 3, 2, 2), with the reader's own view as truth."""
    latents = torch.randn(12, 3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    truth = reader.read(autoencoder.decode(latents / 2)[:, :, 1:])
    truth["colour"][0] = -1
    return HeldOut(
        latents,
        torch.zeros(12, 2, 4),
        torch.ones(12, 2, dtype=torch.bool),
        tuple(f"clip {i}" for i in range(12)),
        truth,
    )


@pytest.fixture
def gaussian_denoiser() -> type[GaussianDenoiser]:
    return GaussianDenoiser
