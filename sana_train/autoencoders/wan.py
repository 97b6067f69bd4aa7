"""The Wan 2.1 video VAE (8x8x4, c16, causal, 1 + 4k frames) on diffusers' class.

Legend: B batch, C latent channels, F frames, T/H/W latent grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.autoencoders.diffusers_io import load_diffusers, reset_tree, use_tiles
from sana_train.autoencoders.weights import load_weights, without_values
from sana_train.types import LatentSpec


class WanAutoencoder(VideoAutoencoder):
    """``AutoencoderKLWan`` behind the ``Autoencoder`` protocol; defaults are Wan 2.1's.

    diffusers clamps inside its decoder, so ``decode_unclamped`` is clamped too: a reference space to
    come from, not one to train.

    Args:
        latent_channels: channels of the latent space.
        base_width: width at full resolution.
        width_factors: width of each stage over ``base_width``.
        num_res_blocks: residual blocks per stage.
        latents_mean: per-channel mean of raw latents; None for the published numbers.
        latents_std: per-channel standard deviation; None for the published numbers.
        tile_px: larger clips are coded in tiles of so many pixels, overlapping and blended; None codes
            them whole.
        tile_stride_px: from one tile to the next.
        weights: a folder of this project, a diffusers folder or a hub id with a ``vae`` subfolder;
            None for random weights.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(
        self,
        latent_channels: int = 16,
        base_width: int = 96,
        width_factors: list[int] = [1, 2, 4, 4],  # noqa: B006
        num_res_blocks: int = 2,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        tile_px: int | None = None,
        tile_stride_px: int | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKLWan  # an import of seconds

        stages = len(width_factors)
        if stages != 4:
            raise ValueError(f"Wan's 8x8x4 grid takes 4 width_factors, got {stages}")
        statistics = {"latents_mean": latents_mean, "latents_std": latents_std}
        given: dict[str, Any] = {name: list(value) for name, value in statistics.items() if value is not None}
        is_own = weights is not None and (Path(weights) / "spec.json").is_file()
        with without_values(weights is not None and not is_own):  # diffusers builds another to load into
            self.vae: Any = AutoencoderKLWan(
                base_dim=base_width,
                z_dim=latent_channels,
                dim_mult=list(width_factors),
                num_res_blocks=num_res_blocks,
                temperal_downsample=[False, True, True],  # spelt so in the published configs
                **given,
            )
        config = self.vae.config
        if len(config.latents_mean) != latent_channels or len(config.latents_std) != latent_channels:
            raise ValueError(
                f"latents_mean and latents_std need {latent_channels} entries each, got "
                f"{len(config.latents_mean)} and {len(config.latents_std)}"
            )
        self.spec = LatentSpec(latent_channels, 4, 8, 8, "causal")
        self.register_buffer("latents_mean", torch.tensor(config.latents_mean))
        self.register_buffer("latents_std", torch.tensor(config.latents_std))
        if weights is not None and is_own:
            load_weights(self, weights)
        elif weights is not None:
            self.vae = load_diffusers(self.vae, weights, "give a diffusers folder or a hub id")
        self.settings = use_tiles(self.vae, self.spec.stride_h, tile_px, tile_stride_px)

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, 1 + 4k, H, W) in [-1, 1] -> raw latents (B, C, 1 + k, H/8, W/8), the mode."""
        self.check_clip(video)
        return self.vae.encode(video, return_dict=False)[0].mode()

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Raw latents (B, C, T, H, W) -> (B, 3, 1 + 4(T - 1), 8H, 8W), clamped by diffusers."""
        self.check_latents(latents)
        return self.vae.decode(latents, return_dict=False)[0]

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self.latents_mean, self.latents_std

    @torch.no_grad()
    def reset_parameters(self) -> None:
        reset_tree(self.vae)
        config = self.vae.config
        self.latents_mean.copy_(torch.tensor(config.latents_mean))
        self.latents_std.copy_(torch.tensor(config.latents_std))
