"""Twice the height and width in latent space, between stage 1 and stage 2.

LTX-2's latent upsampler reads and writes raw latents, the refiner normalised ones: both changes of scale are
made here. Legend: B clips, C channels, T/H/W latent grid.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from sana_train.autoencoders.diffusers_io import load_diffusers
from sana_train.autoencoders.weights import without_values
from sana_train.protocols import Autoencoder
from sana_train.types import VideoLatents

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class LTX2Upsampler(nn.Module):
    """diffusers' ``LTX2LatentUpsamplerModel``, frozen; made on the CPU, whatever torch's default device is.

    Args:
        latent_channels: C.
        width: of its convolutions, a multiple of 32 (its norms' groups).
        num_blocks: residual blocks before and after upsampling.
        use_rational_resampler: as LTX-2.0 has it; 2.3 does without.
        dtype: of the weights.
        weights: a diffusers folder or hub id with a ``latent_upsampler`` subfolder; None for random weights.
    """

    def __init__(
        self,
        latent_channels: int = 128,
        width: int = 1024,
        num_blocks: int = 4,
        use_rational_resampler: bool = True,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel  # an import of seconds

        # On the CPU, whatever the caller's default device: its blur multiplies integers, which GPUs do not.
        with torch.device("cpu"), without_values(weights is not None):
            network: Any = LTX2LatentUpsamplerModel(
                in_channels=latent_channels,
                mid_channels=width,
                num_blocks_per_stage=num_blocks,
                use_rational_resampler=use_rational_resampler,
            )
        if weights is not None:
            network = load_diffusers(
                network,
                weights,
                "give a copy of the hub repository Lightricks/LTX-2 with its folder `latent_upsampler`",
                part="latent_upsampler",
                dtype=_DTYPES[dtype],
            )
        self.network: Any = nn.Module.to(network, _DTYPES[dtype])
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def upsample(self, latents: VideoLatents, autoencoder: Autoencoder) -> VideoLatents:
        """Normalised latents (B, C, T, H, W) -> normalised (B, C, T, 2H, 2W), in the dtype of ``latents``.

        Raises:
            ValueError: raw latents, or those of another autoencoder.
        """
        if not latents.is_normalised:
            raise ValueError(
                "the upsampler got raw latents; expected normalised ones: autoencoder.normalise(...)"
            )
        if latents.space != autoencoder.fingerprint():
            raise ValueError(
                f"the latents are of autoencoder {latents.space}, the upsampler was given "
                f"{autoencoder.fingerprint()}; decode with the one and encode with the other"
            )
        raw = autoencoder.denormalise(latents.values.to(torch.float32))
        larger = self.network(raw.to(self.network.dtype)).to(torch.float32)
        values = autoencoder.normalise(larger).to(latents.values.dtype)
        return VideoLatents(values, latents.space, True, latents.fps)
