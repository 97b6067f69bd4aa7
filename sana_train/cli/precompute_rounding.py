"""What a narrower type than float32 does to latents: measured on a few clips before the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.cli.precompute_job import Encoders, Split
from sana_train.data.encode_shards import ShardEncoder
from sana_train.data.latents import working_dtype

_NUM_CLIPS = 2
_NUM_TRIED = 16


@dataclass(frozen=True)
class Exact:
    """Clips encoded in float32.

    Attributes:
        pixels: (1, 3, F, H, W) in [-1, 1] on the host, a clip each.
        latents: of each, normalised, on the host, by autoencoder.
        statistics: (mean, std) over channels of every autoencoder, float32.
    """

    pixels: list[Tensor]
    latents: Mapping[str, list[Tensor]]
    statistics: Mapping[str, tuple[Tensor, Tensor]]

    def normalise(self, name: str, raw: Tensor) -> Tensor:
        mean, std = (value.view(1, -1, 1, 1, 1) for value in self.statistics[name])
        return (raw.float().cpu() - mean) / std


@torch.no_grad()
def encode_exactly(encoders: Encoders, split: Split, device: torch.device) -> Exact | None:
    """The first clips that can be used, by autoencoders that are not cast yet; None if there are none.

    Raises:
        torch.OutOfMemoryError: the device is too small for float32.
    """
    first = next(iter(split.mine.values()))
    loaded = (split.load(index).video for index in first[:_NUM_TRIED])
    videos = [video for video in loaded if video is not None][:_NUM_CLIPS]
    if not videos:
        return None
    pixels = [ShardEncoder.to_pixels(video[None]) for video in videos]
    statistics = {}
    for name, autoencoder in encoders.autoencoders.items():
        assert isinstance(autoencoder, VideoAutoencoder)
        mean, std = autoencoder.statistics()
        statistics[name] = mean.float().cpu().clone(), std.float().cpu().clone()
    exact = Exact(pixels, {name: [] for name in encoders.autoencoders}, statistics)
    for name, autoencoder in encoders.autoencoders.items():
        for clip in pixels:
            exact.latents[name].append(exact.normalise(name, autoencoder.encode(clip.to(device))))
    return exact


@torch.no_grad()
def rounding(exact: Exact, encoder: ShardEncoder) -> str:
    """How far latents as they will be kept are from those in float32, a line for each autoencoder."""
    lines = []
    for name, autoencoder in encoder.autoencoders.items():
        errors = []
        for clip, truth in zip(exact.pixels, exact.latents[name], strict=True):
            raw = autoencoder.encode(clip.to(encoder.device, working_dtype(autoencoder))).to(encoder.dtype)
            errors.append(exact.normalise(name, raw) - truth)
        error = torch.stack(errors)
        rms, largest = float(error.square().mean().sqrt()), float(error.abs().max())
        kept = str(encoder.dtype).removeprefix("torch.")
        lines.append(
            f"{name} in {kept} against float32: {rms:.2g} of a channel's standard deviation (root mean "
            f"square), {largest:.2g} at most, on {len(errors)} clips"
        )
    return "\n".join(lines)
