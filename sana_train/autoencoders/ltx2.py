"""The LTX-2 video VAE (32x32x8, causal, 1 + 8k frames) on diffusers' class.

Legend: B batch, C latent channels, F frames, T/H/W latent grid.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.autoencoders.diffusers_io import load_diffusers, reset_tree, use_tiles
from sana_train.autoencoders.initialise import variance_preserving_
from sana_train.autoencoders.layout import channels_last_
from sana_train.autoencoders.ltx2_layout import exchange_layers_
from sana_train.autoencoders.weights import load_weights, without_values
from sana_train.types import LatentSpec
from sana_train.utils.compiling import compile_module

# (time, space) of one resampling block, by diffusers' names.
_STRIDES = {"spatial": (1, 2), "temporal": (2, 1), "spatiotemporal": (2, 2)}
CompileMode = Literal["none", "default", "max-autotune-no-cudagraphs"]
_LTX20_RESAMPLING = ["spatial", "temporal", "spatiotemporal", "spatiotemporal"]


class LTX2VideoAutoencoder(VideoAutoencoder):
    """``AutoencoderKLLTX2Video`` behind the ``Autoencoder`` protocol; defaults are LTX-2.0's.

    LTX-2.3 and 2.5 have the same geometry but another latent space, so weights of another
    architecture are refused.

    Args:
        latent_channels: channels of the latent space.
        encoder_widths: width behind each down block.
        encoder_layers: residual blocks of each down block, and of the middle block.
        decoder_widths: reversed, as diffusers takes them: the last is the width at the latent grid.
        decoder_layers: likewise, the last are those of the middle block.
        downsample: ``spatial``, ``temporal`` or ``spatiotemporal`` for each down block.
        upsample: the same for each up block, in the order in which they run.
        upsample_factors: by which each up block divides its width; reversed like the widths.
        use_upsample_residual: whether up blocks have a shortcut (LTX-2.0 has, 2.3 has not).
        patch_px: pixels folded into channels at the input.
        decoder_padding: spatial padding of the decoder.
        use_channels_last: compute with channels last in memory, in layers of this project beside which
            diffusers' need more copies; results differ by rounding.
        use_fused_norms: with channels last, norm, SiLU and padding are one kernel on a GPU.
        compile_mode: ``torch.compile`` mode of encoder and decoder, once for every size, or ``none``;
            with it diffusers' own layers run, and ``use_channels_last`` lays out the weights alone.
        tile_px: larger clips are coded in tiles of so many pixels, overlapping and blended; None codes
            them whole. Time is never divided: the decoder sees all of it.
        tile_stride_px: from one tile to the next.
        weights: a folder of this project, a diffusers folder or a hub id with a ``vae`` subfolder;
            None for random weights.
    """

    def __init__(
        self,
        latent_channels: int = 128,
        encoder_widths: list[int] = [256, 512, 1024, 2048],  # noqa: B006
        encoder_layers: list[int] = [4, 6, 6, 2, 2],  # noqa: B006
        decoder_widths: list[int] = [256, 512, 1024],  # noqa: B006
        decoder_layers: list[int] = [5, 5, 5, 5],  # noqa: B006
        downsample: list[str] = _LTX20_RESAMPLING,
        upsample: list[str] = ["spatiotemporal", "spatiotemporal", "spatiotemporal"],  # noqa: B006
        upsample_factors: list[int] = [2, 2, 2],  # noqa: B006
        use_upsample_residual: bool = True,
        patch_px: int = 4,
        decoder_padding: Literal["zeros", "reflect"] = "reflect",
        use_channels_last: bool = False,
        use_fused_norms: bool = False,
        compile_mode: CompileMode = "none",
        tile_px: int | None = None,
        tile_stride_px: int | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKLLTX2Video  # an import of seconds

        if use_fused_norms and (not use_channels_last or compile_mode != "none"):
            raise ValueError(
                f"use_fused_norms=true with use_channels_last={use_channels_last} and "
                f"compile_mode={compile_mode}: it needs use_channels_last=true and compile_mode=none"
            )
        stride_t, stride_px = _stride(downsample, patch_px)
        if _stride(upsample, patch_px) != (stride_t, stride_px):
            raise ValueError(
                f"downsample {list(downsample)} gives strides {(stride_t, stride_px)}, upsample "
                f"{list(upsample)} {_stride(upsample, patch_px)}; they must be equal"
            )
        _check_widths(latent_channels, encoder_widths, downsample)
        self.spec = LatentSpec(latent_channels, stride_t, stride_px, stride_px, "causal")
        # Resampling and shortcuts move numbers about without weights of their own.
        self.settings = {
            "downsample": list(downsample),
            "upsample": list(upsample),
            "use_upsample_residual": use_upsample_residual,
            "patch_px": patch_px,
            "decoder_padding": decoder_padding,
        }
        num_up = len(upsample)
        is_own = weights is not None and (Path(weights) / "spec.json").is_file()
        with without_values(weights is not None and not is_own):  # diffusers builds another to load into
            self.vae: Any = AutoencoderKLLTX2Video(
                latent_channels=latent_channels,
                block_out_channels=tuple(encoder_widths),
                down_block_types=("LTX2VideoDownBlock3D",) * len(downsample),
                layers_per_block=tuple(encoder_layers),
                spatio_temporal_scaling=(True,) * len(downsample),
                downsample_type=tuple(downsample),
                decoder_block_out_channels=tuple(decoder_widths),
                decoder_layers_per_block=tuple(decoder_layers),
                decoder_spatio_temporal_scaling=(True,) * num_up,
                decoder_inject_noise=(False,) * (num_up + 1),
                upsample_type=tuple(upsample),
                upsample_residual=(use_upsample_residual,) * num_up,
                upsample_factor=tuple(upsample_factors),
                patch_size=patch_px,
                encoder_causal=True,
                decoder_causal=False,
                decoder_spatial_padding_mode=decoder_padding,
                spatial_compression_ratio=stride_px,  # diffusers derives wrong ones
                temporal_compression_ratio=stride_t,
            )
        if weights is None:
            self.reset_parameters()
        elif is_own:
            load_weights(self, weights)
        else:
            self.vae = load_diffusers(self.vae, weights, "give a diffusers folder or a hub id")
        self.settings = {**self.settings, **use_tiles(self.vae, stride_px, tile_px, tile_stride_px)}
        self._lay_out(use_channels_last, use_fused_norms, compile_mode)

    def _lay_out(self, use_channels_last: bool, use_fused_norms: bool, compile_mode: CompileMode) -> None:
        """The same networks in another memory layout, with other kernels."""
        if use_channels_last and compile_mode == "none":
            exchange_layers_(self.vae, use_fused_norms)
        elif use_channels_last:
            channels_last_(self.vae)
        if compile_mode != "none":
            for network in (self.vae.encoder, self.vae.decoder):
                compile_module(network, compile_mode)

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, 1 + k * st, H, W) in [-1, 1] -> raw latents (B, C, 1 + k, H/sh, W/sw), the mode."""
        self.check_clip(video)
        return self.vae.encode(video, return_dict=False)[0].mode().contiguous()  # in one layout, whatever ran

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Raw latents (B, C, T, H, W) -> (B, 3, 1 + (T - 1) * st, sh * H, sw * W)."""
        self.check_latents(latents)
        return self.vae.decode(latents, return_dict=False)[0]

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self.vae.latents_mean, self.vae.latents_std

    @torch.no_grad()
    def reset_parameters(self) -> None:
        reset_tree(self.vae)
        for module in self.vae.modules():
            if isinstance(module, nn.Conv3d):
                variance_preserving_(module)
        decoder = self.vae.decoder
        for upsampler in (up.upsamplers[0] for up in decoder.up_blocks):
            variance_preserving_(upsampler.conv.conv, math.prod(upsampler.stride))
        variance_preserving_(decoder.conv_out.conv, self.vae.config.patch_size**2)
        self.vae.latents_mean.zero_()
        self.vae.latents_std.fill_(1.0)


def _stride(resampling: list[str], patch_px: int) -> tuple[int, int]:
    """(frames, pixels) per latent of a row of resampling blocks behind the patching."""
    unknown = [name for name in resampling if name not in _STRIDES]
    if unknown:
        raise ValueError(f"unknown resampling {unknown}; take each from {sorted(_STRIDES)}")
    pairs = [_STRIDES[name] for name in resampling]
    return math.prod(time for time, _ in pairs), patch_px * math.prod(space for _, space in pairs)


def _check_widths(latent_channels: int, widths: list[int], downsample: list[str]) -> None:
    """Each down block averages whole groups of unshuffled channels; diffusers finds out only when it runs."""
    for name, width_in, width_out in zip(downsample, [latent_channels, *widths], widths, strict=False):
        time, space = _STRIDES[name]
        factor = time * space * space
        if (width_in * factor) % width_out or width_out % factor:
            raise ValueError(
                f"a {name} down block cannot average {width_in} channels to {width_out}; take a width "
                f"that is a multiple of {factor} and divides {width_in * factor}"
            )
