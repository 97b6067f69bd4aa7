"""An LTX-2 autoencoder with a second decoder for large clips, in one latent space.

A small decoder that was trained on small clips is poor on large ones. The encoder and the statistics define
the space; a decoder of its own for the size that stage 2 makes changes neither, so that latents, caches and
DiTs of the one autoencoder are those of the other. Legend: B batch, C latent channels, T/H/W latent grid.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sana_train.autoencoders.base import missing_weights
from sana_train.autoencoders.ltx2 import LTX2VideoAutoencoder
from sana_train.utils.torch_files import read_safetensors

FILE_NAME = "model.safetensors"
_PREFIX = "large."


class LTX2TwoDecoders(LTX2VideoAutoencoder):
    """``LTX2VideoAutoencoder``, whose clips from a size on are decoded by ``large``.

    Its fingerprint is that of the autoencoder without ``large``: the latents are the same.

    Args:
        large_from_px: height or width from which on clips are decoded by ``large``.
        large_weights: a folder with ``model.safetensors`` of it; None for a copy of the decoder itself. Read
            only beside ``weights``.
        settings: of ``LTX2VideoAutoencoder``.
    """

    stands_for = "sana_train.autoencoders.ltx2.LTX2VideoAutoencoder"

    def __init__(
        self,
        large_from_px: int,
        latent_channels: int,
        encoder_widths: list[int],
        encoder_layers: list[int],
        decoder_widths: list[int],
        decoder_layers: list[int],
        downsample: list[str],
        upsample: list[str],
        upsample_factors: list[int],
        use_upsample_residual: bool,
        patch_px: int,
        decoder_padding: Any,
        weights: str | None = None,
        large_weights: str | None = None,
    ) -> None:
        super().__init__(
            latent_channels,
            encoder_widths,
            encoder_layers,
            decoder_widths,
            decoder_layers,
            downsample,
            upsample,
            upsample_factors,
            use_upsample_residual,
            patch_px,
            decoder_padding,
            weights=weights,
        )
        self.large_from_px = large_from_px
        self.large: nn.Module = copy.deepcopy(self.vae.decoder)
        if weights is not None and large_weights is not None:
            self._load_large(Path(large_weights) / FILE_NAME)

    def _load_large(self, file: Path) -> None:
        if not file.is_file():
            remedy = "train it with experiment=tiny/stage2/ltx2_large, or set autoencoder.large_weights=null"
            raise missing_weights("the decoder of large clips", file, remedy)
        try:
            self.large.load_state_dict(read_safetensors(file))
        except RuntimeError as error:
            raise ValueError(
                f"{file} does not fit the decoder that the config builds; train it again: {error}"
            ) from error

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Raw latents (B, C, T, H, W) -> (B, 3, 1 + (T - 1) * st, sh * H, sw * W)."""
        self.check_latents(latents)
        sizes_px = (latents.shape[3] * self.spec.stride_h, latents.shape[4] * self.spec.stride_w)
        if max(sizes_px) < self.large_from_px:
            return super().decode_unclamped(latents)
        return self.large(latents, None)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "large"):  # not yet there while the base class is built
            self.large.load_state_dict(self.vae.decoder.state_dict())

    def _identity(self) -> Mapping[str, Tensor]:
        return {name: value for name, value in self.state_dict().items() if not name.startswith(_PREFIX)}
