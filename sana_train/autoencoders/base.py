"""What all video autoencoders share: statistics, clamping, fingerprint, weights.

Legend: B batch, C latent channels, F frames, T/H/W latent grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sana_train.types import LatentSpec, VideoShape
from sana_train.utils.hashing import json_hash, tensors_hash


class VideoAutoencoder(nn.Module, ABC):
    """An autoencoder as a trainable module that also fits the ``Autoencoder`` protocol.

    A subclass sets ``spec`` and writes ``encode``, ``decode_unclamped``, ``statistics`` and
    ``reset_parameters``. ``encode`` and ``decode_unclamped`` carry gradients.

    Attributes:
        spec: geometry of the latent space.
        settings: what else of the configuration changes results and cannot be seen in the weights,
            such as a chunk length or a padding; JSON values.
        stands_for: dotted name of the class in whose latent space it works, where that is another one.
    """

    spec: LatentSpec
    settings: Mapping[str, Any] = {}
    stands_for: str | None = None
    _hashed: tuple[tuple, str] | None = None  # (which weights, their hash)

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> raw latents (B, C, T, H/sh, W/sw).

        F counts the ``spec.skip_frames`` head frames, which are dropped here.

        Raises:
            ValueError: the clip does not fit the latent grid.
        """

    @abstractmethod
    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Raw latents -> (B, 3, F', H, W), not clamped: the path to train through."""

    @abstractmethod
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Buffers (C,), (C,): mean and standard deviation of raw latents per channel."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Fresh random weights and neutral statistics, in place (after ``to_empty`` too)."""

    def forward(self, video: Tensor, latent_noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(raw latents, unclamped reconstruction); ``latent_noise`` is added before decoding."""
        latents = self.encode(video)
        noisy = latents if latent_noise is None else latents + latent_noise
        return latents, self.decode_unclamped(noisy)

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents -> (B, 3, F', H, W) in [-1, 1]; F' leaves out skipped frames."""
        return self.decode_unclamped(latents).clamp(-1.0, 1.0)

    def reconstructed_frames(self, video: Tensor) -> Tensor:
        """The frames of a clip that ``decode(encode(clip))`` gives back."""
        return video[:, :, self.spec.skip_frames :]

    def normalise(self, latents: Tensor) -> Tensor:
        """Raw -> zero mean, unit variance per channel (in fp32 at least)."""
        mean, std = (value.view(1, -1, 1, 1, 1) for value in self.statistics())
        return (latents - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        """Inverse of ``normalise``."""
        mean, std = (value.view(1, -1, 1, 1, 1) for value in self.statistics())
        return latents * std + mean

    @torch.no_grad()
    def measure_statistics(self, videos: Iterable[Tensor]) -> None:
        """Set the statistics from clips (B, 3, F, H, W), accumulated in fp64.

        Raises:
            ValueError: no clips, or a channel that never varies (its scale would be undefined).
        """
        mean, std = self.statistics()
        total = torch.zeros(mean.shape, dtype=torch.float64, device=mean.device)
        total_squares = torch.zeros_like(total)
        count = 0
        for video in videos:
            latents = self.encode(video.to(mean.device)).double()
            total += latents.sum(dim=(0, 2, 3, 4))
            total_squares += latents.square().sum(dim=(0, 2, 3, 4))
            count += latents.numel() // latents.shape[1]
        if count == 0:
            raise ValueError("no clips to measure latent statistics on; pass at least one batch of video")
        variance = total_squares / count - (total / count).square()
        if bool((variance <= 1e-12).any()):
            dead = (variance <= 1e-12).nonzero().flatten().tolist()
            raise ValueError(
                f"latent channels {dead} never vary over {count} positions; measure on more clips"
            )
        mean.copy_(total / count)
        std.copy_(variance.sqrt())

    def fingerprint(self) -> str:
        """Hash of all that results depend on: class, geometry, settings, weights and statistics.

        Weights count as fp32, so that a bf16 file and its fp32 copy agree.
        """
        return json_hash([class_path(self), self.spec.to_dict(), dict(self.settings), self._weights_hash()])

    def _weights_hash(self) -> str:
        """Hashed again only after a change: every clip of two stages asks, and 1.2B weights take seconds.

        Torch counts in-place changes of a tensor, copies share their original's count, and a tensor that was
        put in the place of another has memory of its own.
        """
        state = self._identity()
        version = tuple((name, value.data_ptr(), value._version) for name, value in state.items())
        if self._hashed is None or self._hashed[0] != version:
            weights = tensors_hash({name: value.detach().float() for name, value in state.items()})
            self._hashed = version, weights
        return self._hashed[1]

    def _identity(self) -> Mapping[str, Tensor]:
        """The weights that make two autoencoders of one class and one geometry the same."""
        return self.state_dict()

    def check_clip(self, video: Tensor) -> tuple[int, int, int, int]:
        """(C, T, H, W) of the latents of ``video`` (B, 3, F, H, W), or ``ValueError``."""
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"an autoencoder takes video of shape (B, 3, F, H, W), got {tuple(video.shape)}")
        return self.spec.latent_shape(VideoShape(*video.shape[2:]))

    def check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.spec.channels:
            raise ValueError(
                f"{type(self).__name__} decodes latents of shape (B, {self.spec.channels}, T, H, W), got "
                f"{tuple(latents.shape)}; they are from another autoencoder"
            )


def class_path(model: VideoAutoencoder) -> str:
    """``package.module.Class``, as configurations name it; of one that stands in for another, the other's."""
    return model.stands_for or f"{type(model).__module__}.{type(model).__qualname__}"


def missing_weights(kind: str, path: str | Path, remedy: str) -> FileNotFoundError:
    """The error for weights that are not there: what was wanted, where it was looked for, what to do."""
    return FileNotFoundError(f"no weights for {kind} at {Path(path).absolute()}; {remedy}")
