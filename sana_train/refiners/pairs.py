"""A clip's latents beside those of the same clip at half the size, which stage 1 works in.

Legend: B clips, C latent channels, T/H/W latent grid of the whole clip.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sana_train.protocols import Autoencoder
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.utils.hashing import json_hash, tensors_hash


class StagePairs:
    """An ``Autoencoder`` of 2 C channels: latents of a clip, then of the clip at half the size.

    Args:
        autoencoder: of both stages.
        upsampler: makes the second as large as the first; None repeats each twice, and ``halved`` undoes it.
    """

    def __init__(self, autoencoder: Autoencoder, upsampler: LTX2Upsampler | None) -> None:
        self.autoencoder, self.upsampler = autoencoder, upsampler
        self.spec = replace(autoencoder.spec, channels=2 * autoencoder.spec.channels)

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1], H and W of an even number of latents -> raw (B, 2 C, T, H, W)."""
        half = F.interpolate(  # of frames one by one: bicubic with anti-aliasing is of pictures
            video.transpose(1, 2).flatten(0, 1),
            (video.shape[3] // 2, video.shape[4] // 2),
            mode="bicubic",
            antialias=True,
        ).clamp(-1.0, 1.0)
        half = half.unflatten(0, (len(video), video.shape[2])).transpose(1, 2)
        whole, small = self.autoencoder.encode(video), self.autoencoder.encode(half)
        return torch.cat([whole, self._enlarged(small)], dim=1)

    def _enlarged(self, small: Tensor) -> Tensor:
        if self.upsampler is None:
            return small.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
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
        """Hash of the autoencoder and the upsampler."""
        weights = {} if self.upsampler is None else self.upsampler.network.state_dict()
        hashed = tensors_hash({name: value.detach().float() for name, value in weights.items()})
        return json_hash(["pairs", self.autoencoder.fingerprint(), hashed])


def halved(repeated: Tensor) -> Tensor:
    """(B, C, T, H, W) of latents that were repeated twice -> (B, C, T, H/2, W/2)."""
    return repeated[:, :, :, ::2, ::2].contiguous()
