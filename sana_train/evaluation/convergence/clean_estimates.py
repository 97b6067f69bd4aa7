"""One-step clean estimates: what the network takes a noisy clip to be.

    latents_hat = noisy - sigma * velocity

It is decoded and held against decode(latents), not against the raw clip: the autoencoder's own
error is in both, so that only the denoiser is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sana_train.evaluation import video_stats
from sana_train.evaluation.convergence.heldout import HeldOut, evaluation_mode
from sana_train.evaluation.convergence.loss_bands import level_noise
from sana_train.evaluation.convergence.samples import group_scores
from sana_train.flow.path import clean_from_velocity, noisy_latents
from sana_train.protocols import Denoiser, Reader

CLEAN_SIGMAS = (0.9, 0.8)


def clean_latents(
    denoiser: Denoiser, heldout: HeldOut, sigmas: Sequence[float], seed: int, first_clip: int = 0
) -> dict[float, Tensor]:
    """One-step estimate of the normalised latents at each level, on the loss bands' noise."""
    estimates = {}
    with evaluation_mode(denoiser):
        state = denoiser.prepare(heldout.context, heldout.context_mask)
        for sigma in sigmas:
            noise = level_noise(seed, sigma, first_clip, heldout.latents)
            t = torch.full((len(heldout),), sigma, device=noise.device)
            noisy = noisy_latents(heldout.latents, noise, t)
            estimates[sigma] = clean_from_velocity(noisy, denoiser(noisy, t, state).float(), t)
    return estimates


def clean_metrics(
    estimate: Tensor, decoded: Tensor, truth: Mapping[str, Tensor], reader: Reader | None
) -> dict[str, Tensor]:
    """Per-clip metrics of a decoded estimate against the decoded clip itself, (n,) each.

    Args:
        estimate: (n, 3, F, H, W), decode(latents_hat).
        decoded: (n, 3, F, H, W), decode(latents).
    """
    metrics = {
        "delta_e": video_stats.delta_e(video_stats.low_pass_lab(estimate), video_stats.low_pass_lab(decoded)),
        "spectrum_gap": video_stats.spectrum_gap(
            video_stats.top_band_log_power(estimate), video_stats.top_band_log_power(decoded)
        ),
    }
    metrics |= {f"psnr_{band}": value for band, value in video_stats.band_psnr(estimate, decoded).items()}
    if reader is not None and truth:
        metrics |= group_scores(estimate, truth, reader)
    return metrics
