"""Small stand-ins with the real interfaces: clips, an autoencoder and a text encoder by arithmetic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sana_train.types import Batch, LatentSpec, VideoShape

SHAPE = VideoShape(frames=9, height_px=32, width_px=32)


class MovingSquares:
    """Clips of one flat square on a flat ground; everything follows from the index and the seed."""

    video = SHAPE
    fps = 8

    def __init__(self, num_clips: int, seed: int = 0) -> None:
        self.num_clips = num_clips
        self.seed = seed

    def __len__(self) -> int:
        return self.num_clips

    def fingerprint(self) -> str:
        return f"squares-{self.num_clips}-{self.seed}"

    def clip(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        ground, square = torch.rand(2, 3, 1, 1, 1, generator=generator) * 1.6 - 0.8
        clip = ground.expand(3, SHAPE.frames, SHAPE.height_px, SHAPE.width_px).clone()
        for frame in range(SHAPE.frames):
            left = (index + 2 * frame) % 16
            clip[:, frame, 8:24, left : left + 16] = square[:, 0]
        return clip

    def batch(self, indices: Sequence[int]) -> Batch:
        index = torch.tensor(list(indices), dtype=torch.int64)
        return Batch(
            index=index,
            ordinals=index,
            weight=torch.ones(len(index)),
            captions=tuple(self.caption(int(i)) for i in index),
            video=torch.stack([self.clip(int(i)) for i in index]),
            attributes={"shape": index % 5, "colour": torch.stack([index % 7, index % 3 - 1], dim=1)},
        )

    @staticmethod
    def caption(index: int) -> str:
        return "a square " + " ".join(["moving"] * (1 + index % 4)) + f" number {index}"


class BlockMeans:
    """An 'autoencoder': the mean colour of 8x8 px blocks of every 4th frame, times ``gain``."""

    spec = LatentSpec(channels=3, stride_t=4, stride_h=8, stride_w=8)

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def encode(self, video: Tensor) -> Tensor:
        return self.gain * torch.nn.functional.avg_pool3d(video[:, :, ::4], (1, 8, 8))

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents.repeat_interleave(4, dim=2)[:, :, 3:]
        return (frames / self.gain).repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)

    def normalise(self, latents: Tensor) -> Tensor:
        return latents

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents

    def fingerprint(self) -> str:
        return f"block-means-{self.gain}"


class WordHashes:
    """One vector per word."""

    dim = 4
    max_tokens = 8

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        context = torch.zeros(len(captions), self.max_tokens, self.dim)
        mask = torch.zeros(len(captions), self.max_tokens, dtype=torch.bool)
        for row, caption in enumerate(captions):
            for column, word in enumerate(caption.split()[: self.max_tokens]):
                digest = hashlib.sha256(word.encode()).digest()
                context[row, column] = torch.tensor(list(digest[: self.dim])) / 255
                mask[row, column] = True
        return context, mask

    def fingerprint(self) -> str:
        return "word-hashes"


@pytest.fixture
def squares() -> MovingSquares:
    return MovingSquares(10)


@pytest.fixture
def block_means() -> BlockMeans:
    return BlockMeans()


@pytest.fixture
def word_hashes() -> WordHashes:
    return WordHashes()
