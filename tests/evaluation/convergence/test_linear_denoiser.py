from __future__ import annotations

import pytest
import torch

from sana_train.evaluation.convergence.linear_denoiser import LinearDenoiser
from sana_train.evaluation.convergence.loss_bands import SIGMAS

SHAPE = (4, 2, 3, 3)


def gaussian(num_clips: int, mixing: torch.Tensor, seed: int) -> torch.Tensor:
    size = mixing.shape[0]
    noise = torch.randn(num_clips, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise @ mixing.T).reshape(num_clips, *SHAPE)


def gaussian_loss(covariance: torch.Tensor, t: float) -> float:
    """Mean posterior variance of the velocity: eigenvalues v / ((1-t)^2 v + t^2)."""
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)
    return float((values / ((1 - t) ** 2 * values + t**2)).mean())


def test_woodbury_equals_the_dense_affine_map():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(20, *SHAPE, generator=generator, dtype=torch.float64) + 0.5
    noisy = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    t, shrinkage = 0.6, 0.7
    centred = latents - latents.mean(0)
    flat = centred.flatten(1)
    sites = centred.permute(0, 2, 3, 4, 1).reshape(-1, 4)
    site = torch.kron(sites.T @ sites / len(sites), torch.eye(18, dtype=torch.float64))
    covariance = shrinkage * flat.T @ flat / 20 + (1 - shrinkage) * site
    total = (1 - t) ** 2 * covariance + t**2 * torch.eye(72, dtype=torch.float64)
    residual = (noisy - (1 - t) * latents.mean(0)).flatten(1)
    noise = t * torch.linalg.solve(total, residual.T).T
    clean = latents.mean(0).flatten() + (1 - t) * torch.linalg.solve(total, residual.T).T @ covariance
    expected = (noise - clean).reshape(noisy.shape)
    actual = LinearDenoiser(latents, {t: shrinkage}).velocity(noisy, t)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_reaches_the_gaussian_optimum_when_sites_are_independent():
    channel = torch.diag(torch.tensor([2.0, 1.0, 0.3, 0.05], dtype=torch.float64))
    mixing = torch.kron(channel, torch.eye(18, dtype=torch.float64))
    model = LinearDenoiser.fit(gaussian(600, mixing, 0), SIGMAS)
    losses = model.losses(gaussian(1000, mixing, 1), SIGMAS, seed=3).mean(1)
    expected = torch.tensor([gaussian_loss(mixing @ mixing.T, t) for t in SIGMAS], dtype=torch.float64)
    torch.testing.assert_close(losses.double(), expected, rtol=0.03, atol=0)


def test_uses_whole_clip_structure_with_few_clips_and_comes_close_to_the_optimum():
    """Rank 4 over 72 numbers from 64 clips: a single site cannot see what a whole clip tells."""
    generator = torch.Generator().manual_seed(2)
    few_factors = torch.randn(72, 4, generator=generator, dtype=torch.float64)
    mixing = 0.1 * torch.eye(72, dtype=torch.float64)
    mixing[:, :4] += few_factors
    train, heldout = gaussian(64, mixing, 0), gaussian(500, mixing, 1)
    sigmas = (0.3, 0.6, 0.9)
    losses = LinearDenoiser.fit(train, sigmas).losses(heldout, sigmas, seed=3).mean(1)
    site_only = LinearDenoiser(train, {0.5: 0.0}).losses(heldout, sigmas, seed=3).mean(1)
    assert (losses < 0.6 * site_only).all()
    for loss, t in zip(losses.tolist(), sigmas, strict=True):
        assert gaussian_loss(mixing @ mixing.T, t) * 0.97 < loss < gaussian_loss(mixing @ mixing.T, t) * 1.6


def test_the_end_of_the_path_and_too_few_clips_are_refused():
    latents = torch.randn(16, *SHAPE)
    with pytest.raises(ValueError, match="0 < t < 1"):
        LinearDenoiser(latents, {0.5: 0.0}).velocity(latents, 1.0)
    with pytest.raises(ValueError, match="at least 16 training clips, got"):
        LinearDenoiser.fit(latents[:5], (0.5,))
