"""A clip's latents beside those of the same clip at half the size, which stage 1 works in.

Legend: B clips, C latent channels, T/H/W latent grid of the whole clip.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from sana_train.protocols import Autoencoder
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.utils.hashing import json_hash, tensors_hash
from sana_train.utils.resizing import resized

Enlarging = LTX2Upsampler | Literal["pixels", "repeat"]


class StagePairs:
    """An ``Autoencoder`` of 2 C channels: latents of a clip, then of the clip at half the size.

    Args:
        autoencoder: of both stages.
        upsampler: makes the second as large as the first; ``pixels``: decoded, resized and encoded again, as
            an evaluation without an upsampler does; ``repeat``: each twice, which ``halved`` undoes.
    """

    def __init__(self, autoencoder: Autoencoder, upsampler: Enlarging) -> None:
        self.autoencoder = autoencoder
        self.upsampler: Enlarging = upsampler
        self.spec = replace(autoencoder.spec, channels=2 * autoencoder.spec.channels)

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1], H and W of an even number of latents -> raw (B, 2 C, T, H, W)."""
        half = resized(video, video.shape[3] // 2, video.shape[4] // 2)
        whole, small = self.autoencoder.encode(video), self.autoencoder.encode(half)
        return torch.cat([whole, self._enlarged(small)], dim=1)

    def _enlarged(self, small: Tensor) -> Tensor:
        if self.upsampler == "repeat":
            return small.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        if self.upsampler == "pixels":
            video = self.autoencoder.decode(small).to(small.dtype)
            return self.autoencoder.encode(resized(video, 2 * video.shape[3], 2 * video.shape[4]))
        network = self.upsampler.network
        return network(small.to(network.dtype)).to(small.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Raw pairs -> the clips of the first of each."""
        return self.autoencoder.decode(latents.chunk(2, dim=1)[0])

    def normalise(self, latents: Tensor) -> Tensor:
        return torch.cat([self.autoencoder.normalise(each) for each in latents.chunk(2, dim=1)], dim=1)

    def denormalise(self, latents: Tensor) -> Tensor:
        """Inverse of ``normalise``."""
        return torch.cat([self.autoencoder.denormalise(each) for each in latents.chunk(2, dim=1)], dim=1)

    def fingerprint(self) -> str:
        """Hash of the autoencoder and the way to twice the size.

        Of an autoencoder with two decoders the small one alone is in it, and in what ``pixels`` makes.
        """
        if isinstance(self.upsampler, str):
            return json_hash(["pairs", self.autoencoder.fingerprint(), self.upsampler])
        weights = self.upsampler.network.state_dict()
        hashed = tensors_hash({name: value.detach().float() for name, value in weights.items()})
        return json_hash(["pairs", self.autoencoder.fingerprint(), hashed])


def halved(repeated: Tensor) -> Tensor:
    """(B, C, T, H, W) of latents that were repeated twice -> (B, C, T, H/2, W/2)."""
    return repeated[:, :, :, ::2, ::2].contiguous()
