"""Whole samples of held-out captions: are they what the caption says, in colour and in texture?

Legend: n clips.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sana_train.evaluation import video_stats
from sana_train.protocols import Autoencoder, Reader
from sana_train.utils.rng import SampleRng

GROUPS = ("semantic", "colour", "texture")


def sample_noise(seed: int, first_clip: int, like: Tensor) -> Tensor:
    """The starting noise of held-out captions ``first_clip`` and on, shaped as ``like``."""
    ordinals = torch.arange(first_clip, first_clip + len(like), device=like.device)
    return SampleRng(seed, ordinals).normal("heldout/samples", tuple(like.shape[1:]))


def decode(latents: Tensor, autoencoder: Autoencoder) -> Tensor:
    """Normalised latents -> the frames that are compared."""
    return video_stats.comparison_frames(autoencoder.decode(autoencoder.denormalise(latents)))


def group_scores(video: Tensor, truth: Mapping[str, Tensor], reader: Reader) -> dict[str, Tensor]:
    """Reader accuracy per attribute and, averaged over those that apply to a clip, per group: (n,) each."""
    scores = reader.score(reader.read(video), truth)
    metrics = {f"accuracy/{name}": value.float() for name, value in scores.items()}
    for group in GROUPS:
        members = [scores[name].float() for name in reader.groups.get(group, ()) if name in scores]
        if members:
            metrics[group] = torch.stack(members).nanmean(0)
    return metrics


def reference_statistics(video: Tensor) -> tuple[Tensor, Tensor]:
    """What samples of a caption are held against, of its decoded clip: colours (n, 3, m), spectrum (n, K)."""
    colours = video_stats.colour_quantiles(video_stats.low_pass_lab(video))
    return colours, video_stats.top_band_log_power(video)


def sample_metrics(
    video: Tensor,
    statistics: tuple[Tensor, Tensor],
    truth: Mapping[str, Tensor],
    reader: Reader | None,
) -> dict[str, Tensor]:
    """Per-clip metrics of samples, (n,) each.

    ``palette_delta_e`` compares which colours stand out from the backdrop, by cells of 16 px and
    wherever they are: two clips of one caption place their objects differently. ``spectrum_gap`` is the
    top band's log-power distance.
    """
    colours, spectrum = reference_statistics(video)
    metrics = {
        "palette_delta_e": video_stats.quantile_delta_e(colours, statistics[0]),
        "spectrum_gap": video_stats.spectrum_gap(spectrum, statistics[1]),
    }
    if reader is not None and truth:
        metrics |= group_scores(video, truth, reader)
    return metrics
