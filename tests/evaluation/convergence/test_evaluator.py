from __future__ import annotations

import numpy as np
import pytest
import torch

from sana_train.evaluation.convergence.evaluator import ConvergenceEvaluator
from sana_train.evaluation.convergence.levels import Levels
from sana_train.evaluation.convergence.linear_denoiser import LinearDenoiser


def recall(heldout):
    """A generator that returns the held-out latents themselves: a perfect sampler."""
    calls = iter(range(1000))

    def generate(denoiser, context, mask, noise):
        start = next(calls) * len(noise) % len(heldout)
        return heldout.latents[start : start + len(noise)]

    return generate


def test_bands_alone_need_nothing_but_latents(gaussian_denoiser, heldout):
    metrics = ConvergenceEvaluator(heldout).evaluate(gaussian_denoiser(), step=0)
    assert set(metrics) >= {"heldout/loss_high", "heldout/loss_low", "heldout/sigma_0.9"}
    assert not any(name.startswith(("samples/", "clean/")) for name in metrics)
    worse = ConvergenceEvaluator(heldout).evaluate(gaussian_denoiser(1.0), step=0)
    assert worse["heldout/loss_high"] > metrics["heldout/loss_high"] + 0.5


def test_a_perfect_sampler_scores_full_marks_and_no_distance(gaussian_denoiser, heldout, autoencoder, reader):
    evaluator = ConvergenceEvaluator(
        heldout, autoencoder, reader, recall(heldout), num_samples=12, batch_size=4
    )
    metrics = evaluator.evaluate(gaussian_denoiser(), step=0)
    assert metrics["samples/semantic"] == metrics["samples/colour"] == 1.0
    assert metrics["samples/palette_delta_e"] == pytest.approx(0, abs=1e-3)
    assert metrics["samples/spectrum_gap"] == pytest.approx(0, abs=1e-5)


def test_clean_estimates_improve_with_the_denoiser(heldout, autoencoder, reader):
    class Oracle:
        """Knows the clips: velocity = (noisy - latents) / t."""

        latent_channels = 3
        null_context = torch.zeros(2, 4)

        def prepare(self, context, mask):
            return context

        def __call__(self, latents, t, state, positions=None):
            return (latents - heldout.latents[: len(latents)]) / t.reshape(-1, 1, 1, 1, 1)

    class Zero(Oracle):
        def __call__(self, latents, t, state, positions=None):
            return torch.zeros_like(latents)

    evaluator = ConvergenceEvaluator(heldout, autoencoder, reader, num_clean_estimates=12)
    good, bad = evaluator.evaluate(Oracle(), 0), evaluator.evaluate(Zero(), 0)
    assert good["clean/0.9/semantic"] == 1.0 > bad["clean/0.9/semantic"]
    assert good["clean/0.9/delta_e"] < 0.1 < bad["clean/0.9/delta_e"]
    assert good["clean/0.8/psnr_low"] > 60 > bad["clean/0.8/psnr_low"]


def test_clips_that_do_not_have_an_attribute_are_nan_per_clip_and_left_out_of_the_mean(
    gaussian_denoiser, heldout, autoencoder, reader, tmp_path
):
    evaluator = ConvergenceEvaluator(
        heldout, autoencoder, reader, recall(heldout), clips_dir=tmp_path, num_samples=12
    )
    metrics = evaluator.evaluate(gaussian_denoiser(), step=20)
    with np.load(tmp_path / "step_000020.npz") as clips:
        colour = clips["samples/accuracy/colour"]
        loss = clips["heldout/loss_high"]
    assert np.isnan(colour[0])
    assert not np.isnan(colour[1:]).any()
    assert metrics["samples/accuracy/colour"] == 1.0
    assert metrics["heldout/loss_high"] == pytest.approx(loss.mean())


def test_decoding_in_pieces_bounds_memory_and_changes_no_number(
    gaussian_denoiser, heldout, autoencoder, reader, monkeypatch
):
    seen = []
    plain_decode = autoencoder.decode

    def decode(latents):
        seen.append(len(latents))
        return plain_decode(latents)

    monkeypatch.setattr(autoencoder, "decode", decode)

    def measure(batch_size):
        def generate(denoiser, context, mask, noise):
            return noise / 2

        sizes = {"num_clean_estimates": 11, "num_samples": 12, "batch_size": batch_size}
        evaluator = ConvergenceEvaluator(heldout, autoencoder, reader, generate, **sizes)
        return evaluator.measure(gaussian_denoiser(0.3)) | evaluator.levels().ceiling

    whole = measure(12)
    assert max(seen) == 12
    seen.clear()
    monkeypatch.setattr("sana_train.evaluation.convergence.evaluator._DECODED_CLIPS", 5)
    for batch_size in (12, 7):
        pieces = measure(batch_size)
        assert max(seen) == 5
        assert pieces.keys() == whole.keys()
        for name, values in whole.items():
            np.testing.assert_allclose(pieces[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_metrics_are_fp32_whatever_precision_the_denoiser_runs_in(
    gaussian_denoiser, heldout, autoencoder, reader
):
    """A perfect sampler keeps its exact scores, and its reader sees fp32, under the caller's autocast."""
    dtypes = []

    class Watching:
        groups, chance, score = reader.groups, reader.chance, staticmethod(reader.score)

        def read(self, video):
            dtypes.append((video.dtype, torch.is_autocast_enabled("cpu")))
            return reader.read(video)

    def generate(denoiser, context, mask, noise):
        dtypes.append((noise.dtype, torch.is_autocast_enabled("cpu")))
        return heldout.latents.bfloat16()

    evaluator = ConvergenceEvaluator(heldout, autoencoder, Watching(), generate, num_samples=12)
    with torch.autocast("cpu", torch.bfloat16):
        metrics = evaluator.evaluate(gaussian_denoiser(), step=0)
    assert dtypes == [(torch.float32, True), (torch.float32, False)]
    exact = ConvergenceEvaluator(heldout, autoencoder, reader, generate, num_samples=12)
    assert (
        metrics["samples/spectrum_gap"] == exact.evaluate(gaussian_denoiser(), step=0)["samples/spectrum_gap"]
    )


def test_a_diverged_denoiser_has_infinite_loss_not_a_missing_one(gaussian_denoiser, heldout):
    metrics = ConvergenceEvaluator(heldout).evaluate(gaussian_denoiser(float("nan")), step=0)
    assert metrics["heldout/loss_high"] == np.inf


def test_levels_hold_the_linear_denoiser_chance_ceiling_and_reference(
    gaussian_denoiser, heldout, autoencoder, reader, tmp_path
):
    evaluator = ConvergenceEvaluator(heldout, autoencoder, reader, recall(heldout), num_samples=12)
    reference = Levels(reference=evaluator.measure(gaussian_denoiser()), captions=heldout.caption_hashes())
    reference.save(tmp_path / "reference.npz")
    train = torch.randn(256, 3, 3, 2, 2, generator=torch.Generator().manual_seed(7))
    linear = LinearDenoiser.fit(train, evaluator.sigmas)
    levels = evaluator.levels(linear, tmp_path / "reference.npz")
    # The data are unit Gaussian: linear is as good as it gets, up to the fit's own error.
    zero, best = levels.means("zero"), levels.means("reference")
    assert zero["heldout/loss_high"] == pytest.approx(best["heldout/loss_high"], rel=0.1)
    assert levels.means("chance")["samples/semantic"] == pytest.approx(1 / 3)
    assert levels.means("ceiling")["samples/semantic"] == 1.0


def test_a_reference_is_cut_to_fewer_clips_and_refused_for_others(gaussian_denoiser, heldout, tmp_path):
    path = tmp_path / "reference.npz"
    measured = ConvergenceEvaluator(heldout).measure(gaussian_denoiser())
    Levels(reference=measured, captions=heldout.caption_hashes()).save(path)
    few = ConvergenceEvaluator(heldout.slice(0, 5)).levels(reference=path)
    np.testing.assert_allclose(few.reference["heldout/loss"], measured["heldout/loss"][:5])
    with pytest.raises(ValueError, match="other held-out clips"):
        ConvergenceEvaluator(heldout.slice(2, 8)).levels(reference=path)
    with pytest.raises(ValueError, match="same noise levels"):
        ConvergenceEvaluator(heldout, sigmas=(0.3, 0.9)).levels(reference=path)


def test_what_is_asked_for_without_its_parts_is_refused(heldout, autoencoder):
    with pytest.raises(ValueError, match="needs a generator"):
        ConvergenceEvaluator(heldout, autoencoder, num_samples=4)
    with pytest.raises(ValueError, match="needs an autoencoder"):
        ConvergenceEvaluator(heldout, num_clean_estimates=4)
    with pytest.raises(ValueError, match="12 held-out clips"):
        ConvergenceEvaluator(heldout, autoencoder, num_clean_estimates=40)


def test_a_reference_is_read_on_the_clips_that_a_run_is_judged_on(
    gaussian_denoiser, heldout, autoencoder, reader, tmp_path
):
    count = len(heldout)
    rising = np.linspace(0, 1, count, dtype=np.float32)  # early clips are harder
    Levels(
        reference={"samples/semantic": rising, "heldout/loss_high": rising}, captions=heldout.caption_hashes()
    ).save(tmp_path / "reference.npz")
    evaluator = ConvergenceEvaluator(heldout, autoencoder, reader, recall(heldout), num_samples=4)
    levels = evaluator.levels(reference=tmp_path / "reference.npz")
    assert levels.means("reference") == pytest.approx(
        {"samples/semantic": rising[:4].mean(), "heldout/loss_high": rising.mean()}
    )
