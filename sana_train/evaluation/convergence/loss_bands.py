"""Held-out flow loss per noise level, with noise that never changes.

High noise is where a clip's content is decided ("semantics"), low noise where its surface is
("texture"). The noise is a pure function of (seed, level, clip), so two evaluations differ by the
network alone and a few dozen clips are enough.

Legend: n clips, L noise levels, C channels, T/H/W latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sana_train.evaluation.convergence.heldout import HeldOut, evaluation_mode
from sana_train.flow.path import noisy_latents, velocity_target
from sana_train.protocols import Denoiser
from sana_train.utils.rng import SampleRng

SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
HIGH_NOISE = 0.8
LOW_NOISE = 0.4


def level_noise(seed: int, sigma: float, first_clip: int, like: Tensor) -> Tensor:
    """The noise of one level for clips ``first_clip`` and on, shaped as ``like`` (n, C, T, H, W)."""
    ordinals = torch.arange(first_clip, first_clip + len(like), device=like.device)
    return SampleRng(seed, ordinals).normal(f"heldout/sigma_{sigma:g}", tuple(like.shape[1:]))


def level_losses(
    velocity: Callable[[Tensor, float], Tensor],
    latents: Tensor,
    sigmas: Sequence[float],
    seed: int,
    first_clip: int = 0,
) -> Tensor:
    """Mean squared velocity error of every clip at every level, (L, n) float32.

    Args:
        velocity: (noisy latents, sigma) -> predicted velocity.
        latents: (n, C, T, H, W), normalised.
        first_clip: number of ``latents[0]`` within the held-out set; it addresses the noise.
    """
    rows = []
    for sigma in sigmas:
        noise = level_noise(seed, sigma, first_clip, latents)
        t = torch.full((len(latents),), sigma, device=latents.device)
        predicted = velocity(noisy_latents(latents, noise, t), sigma)
        error = predicted.float() - velocity_target(latents, noise)
        rows.append(error.square().flatten(1).mean(1))
    return torch.stack(rows)


def denoiser_losses(
    denoiser: Denoiser, heldout: HeldOut, sigmas: Sequence[float], seed: int, batch_size: int
) -> Tensor:
    """``level_losses`` of a captioned denoiser over all held-out clips, (L, n) on the CPU."""
    columns = []
    with evaluation_mode(denoiser):
        for start, clips in heldout.chunks(batch_size):
            state = denoiser.prepare(clips.context, clips.context_mask)

            def velocity(noisy: Tensor, sigma: float, state: object = state) -> Tensor:
                return denoiser(noisy, torch.full((len(noisy),), sigma, device=noisy.device), state)

            columns.append(level_losses(velocity, clips.latents, sigmas, seed, start).cpu())
    return torch.cat(columns, dim=1)


def band_metrics(losses: Tensor, sigmas: Sequence[float]) -> dict[str, Tensor]:
    """Per-clip losses (L, n) -> named per-clip arrays (n,): each level, both bands and the mean."""
    level = torch.tensor(sigmas)
    metrics = {f"heldout/sigma_{sigma:g}": row for sigma, row in zip(sigmas, losses, strict=True)}
    metrics["heldout/loss"] = losses.mean(0)
    for name, chosen in (("high", level >= HIGH_NOISE - 1e-6), ("low", level <= LOW_NOISE + 1e-6)):
        if chosen.any():
            metrics[f"heldout/loss_{name}"] = losses[chosen].mean(0)
    return metrics
