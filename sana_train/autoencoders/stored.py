"""The space of latents that were encoded before, without the autoencoder that encoded them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.types import SPACE_NAME, LatentSpec


class StoredSpace(VideoAutoencoder):
    """Geometry, statistics and fingerprint of an autoencoder, read from beside its latents; no weights.

    Normalises as the autoencoder itself does; whatever would encode or decode is an error.

    Args:
        path: a folder of latent shards with ``space.json``.

    Attributes:
        stands_for: dotted name of the autoencoder's class.

    Raises:
        FileNotFoundError: no ``space.json`` there.
        ValueError: no path, or a file that cannot be read.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str | None) -> None:
        super().__init__()
        if path is None:
            raise ValueError(
                "autoencoder.path is not set; give a folder of precomputed latents, such as "
                "latents/train/ltx2_2b"
            )
        file = Path(path) / SPACE_NAME
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: latents of an earlier version, or no folder of latents; the command of "
                "sana_train.cli.precompute that made them adds it, or choose the autoencoder itself"
            )
        self.path = path
        try:
            space = json.loads(file.read_text())
            self.stands_for: str = space["autoencoder"]
            self.spec = LatentSpec(**space["latent_spec"])
            self._fingerprint: str = space["fingerprint"]
            for name in ("mean", "std"):
                # On the host: a skeleton is built on meta, and these are geometry, too.
                values = torch.tensor(space[name], dtype=torch.float32, device="cpu")
                if values.shape != (self.spec.channels,):
                    raise ValueError(
                        f"{name} has shape {tuple(values.shape)}, not {self.spec.channels} channels"
                    )
                self.register_buffer(name, values)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{file} is damaged or none of ours ({type(error).__name__}: {error}); remove it and run the "
                "command of sana_train.cli.precompute that made the latents, which writes it anew"
            ) from error

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.std

    def fingerprint(self) -> str:
        return self._fingerprint

    def encode(self, video: Tensor) -> Tensor:
        self._refuse("encode")

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        self._refuse("decode")

    def reset_parameters(self) -> None:
        """There are none."""

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"this run cannot {what}: autoencoder=stored is the space of {self.path} without "
            f"{self.stands_for.rpartition('.')[2]} itself. Choose that autoencoder, or train with "
            "latents.mode=precomputed and convergence.num_samples, num_strips and num_clean_estimates of 0"
        )
