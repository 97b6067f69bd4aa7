from __future__ import annotations

import pytest
import torch

from sana_train.evaluation.convergence.heldout import HeldOut
from sana_train.evaluation.convergence.loss_bands import SIGMAS, band_metrics, denoiser_losses


def many_clips(num_clips: int) -> HeldOut:
    latents = torch.randn(num_clips, 3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    context = torch.zeros(num_clips, 2, 4)
    return HeldOut(latents, context, context[..., 0] == 0, ("",) * num_clips)


def test_loss_of_the_optimal_denoiser_is_the_posterior_variance(gaussian_denoiser):
    losses = denoiser_losses(gaussian_denoiser(), many_clips(512), SIGMAS, seed=0, batch_size=512)
    expected = torch.tensor([1 / ((1 - t) ** 2 + t**2) for t in SIGMAS])
    torch.testing.assert_close(losses.mean(1), expected, rtol=0.02, atol=0)


def test_batch_size_changes_nothing_and_captions_are_prepared_once_per_batch(gaussian_denoiser, heldout):
    whole, parts = gaussian_denoiser(0.3), gaussian_denoiser(0.3)
    a = denoiser_losses(whole, heldout, SIGMAS, seed=5, batch_size=64)
    b = denoiser_losses(parts, heldout, SIGMAS, seed=5, batch_size=5)
    torch.testing.assert_close(a, b)
    assert whole.num_prepared == 1
    assert parts.num_prepared == 3


def test_noise_is_fixed_by_the_seed_and_differs_between_levels(gaussian_denoiser, heldout):
    first = denoiser_losses(gaussian_denoiser(), heldout, (0.5, 0.6), seed=0, batch_size=64)
    again = denoiser_losses(gaussian_denoiser(), heldout, (0.5, 0.6), seed=0, batch_size=64)
    other = denoiser_losses(gaussian_denoiser(), heldout, (0.5, 0.6), seed=1, batch_size=64)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    # One shared noise would make neighbouring levels' per-clip losses almost proportional.
    assert torch.corrcoef(first)[0, 1] < 0.95


def test_training_mode_is_left_as_found(gaussian_denoiser, heldout):
    denoiser = gaussian_denoiser().train()
    denoiser_losses(denoiser, heldout, (0.5,), seed=0, batch_size=64)
    assert denoiser.training
    assert not any(denoiser.was_training)


def test_bands_hold_the_levels_they_are_named_after():
    losses = torch.arange(10.0)[:, None].expand(10, 2)
    metrics = band_metrics(losses, SIGMAS)
    assert metrics["heldout/loss_low"].tolist() == [1.5, 1.5]  # .1 .2 .3 .4
    assert metrics["heldout/loss_high"].tolist() == [8.0, 8.0]  # .8 .9 .95
    assert metrics["heldout/sigma_0.95"].tolist() == [9.0, 9.0]
    assert "heldout/loss_low" not in band_metrics(losses[:1], (0.9,))


def test_held_out_fields_of_unequal_length_are_refused(heldout):
    with pytest.raises(ValueError, match="one entry per clip"):
        HeldOut(heldout.latents[:3], heldout.context, heldout.context_mask, heldout.captions)
