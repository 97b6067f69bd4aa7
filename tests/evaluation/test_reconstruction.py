"""Reconstruction quality, whole and inside textures."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from sana_train.autoencoders.dc_ae_v import DCAEV
from sana_train.evaluation import lpips_metric
from sana_train.evaluation.reconstruction import (
    evaluate_reconstruction,
    masked_psnr,
    psnr,
    sound_batches,
    ssim,
    texture_gain_db,
)
from sana_train.types import Batch


def test_psnr_of_a_known_error() -> None:
    reference = torch.zeros(2, 3, 2, 4, 4)
    video = reference + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(psnr(video, reference), torch.tensor([20.0, 40.0]))


def test_ssim_of_flat_frames_is_its_luminance_term_averaged_over_frames() -> None:
    """(2ab + c) / (a^2 + b^2 + c) of brightness from 0, with c = (0.01 * range)^2."""
    reference = torch.full((2, 3, 2, 16, 16), -0.8)  # brightness 0.2 of 2
    video = reference.clone()
    video[1, :, 1] = 0.2  # brightness 1.2 in one frame of one clip
    a, b, c = 0.2, 1.2, 0.02**2
    unlike = (2 * a * b + c) / (a**2 + b**2 + c)
    torch.testing.assert_close(ssim(video, reference), torch.tensor([1.0, (1 + unlike) / 2]))


def test_ssim_of_an_erased_texture_is_near_zero() -> None:
    reference = torch.full((1, 3, 1, 32, 32), -0.5)
    reference[..., ::2] = 0.5
    erased = torch.zeros_like(reference)
    assert ssim(erased, reference).item() < 0.05
    assert ssim(reference * 0.9, reference).item() > 0.9


def test_masked_psnr_sees_only_the_mask() -> None:
    reference = torch.zeros(2, 3, 1, 4, 4)
    video = torch.ones_like(reference)
    mask = torch.zeros(2, 1, 1, 4, 4, dtype=torch.bool)
    mask[0, :, :, :2] = True
    video[0, :, :, :2] = 0.2
    found = masked_psnr(video, reference, mask)
    assert found[0].item() == pytest.approx(20.0, abs=1e-4)
    assert found[1].isnan()  # nothing textured in that clip


def test_erasing_texture_gains_nothing_however_good_the_rest() -> None:
    reference = torch.zeros(1, 3, 1, 8, 8)
    reference[..., :4, ::2] = 0.5  # stripes of mean 0.25 in the upper half
    mask = torch.zeros(1, 1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4, :] = True
    flat = torch.where(mask, torch.tensor(0.25), reference)
    assert texture_gain_db(flat, reference, flat, mask).item() == pytest.approx(0.0)
    halfway = (flat + reference) / 2  # half the contrast: 20 log10(2) dB better
    assert texture_gain_db(halfway, reference, flat, mask).item() == pytest.approx(6.02, abs=0.01)


class Clips:
    """Five striped clips; clip 1 is a hole."""

    def __len__(self) -> int:
        return 5

    def batch(self, indices: Sequence[int]) -> Batch:
        index = torch.tensor(list(indices))
        video = torch.rand(len(index), 3, 9, 8, 8, generator=torch.Generator().manual_seed(0))
        return Batch(index, index, (index != 1).float(), ("",) * len(index), video=video)

    def flattened(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        assert 1 not in indices
        shape = (len(indices), 1, 9, 8, 8)
        return torch.full(shape, 0.5).expand(-1, 3, -1, -1, -1), torch.ones(shape, dtype=torch.bool)


def test_evaluation_leaves_holes_out_and_skipped_frames_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips_metric, "is_ready", lambda: False)
    model = DCAEV(4, [8, 8, 8], [0, 0, 0], [0, 0, 0], chunk_frames=4)
    metrics = evaluate_reconstruction(model, Clips(), num_clips=4, batch_size=3, device="cpu")
    assert metrics["num_clips"] == 3.0
    assert -1.0 <= metrics["ssim"] < 0.5
    assert "lpips" not in metrics
    assert metrics["texture_gain_db"] < 0.0  # an untrained decoder is worse than the mean colour


def test_an_autoencoder_in_bf16_gets_bf16_and_is_judged_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips_metric, "is_ready", lambda: False)
    torch.manual_seed(0)
    model = DCAEV(4, [8, 8, 8], [0, 0, 0], [0, 0, 0], chunk_frames=4)
    exact = evaluate_reconstruction(model, Clips(), 5, 2, "cpu")
    judged: list[int] = []
    rounded = evaluate_reconstruction(
        model.to(torch.bfloat16), Clips(), 5, 2, "cpu", torch.bfloat16, judged.append
    )
    assert judged == [1, 2, 1]  # clip 1 is a hole
    assert rounded["psnr_db"] != exact["psnr_db"]
    assert rounded["psnr_db"] == pytest.approx(exact["psnr_db"], abs=0.1)


def test_perceptual_distance_is_measured_only_where_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(pretrained: bool, device: str) -> object:
        assert pretrained
        return lambda decoded, reference: torch.full((len(decoded),), 0.25)

    monkeypatch.setattr(lpips_metric, "is_ready", lambda: True)
    monkeypatch.setattr(lpips_metric, "PerceptualDistance", make)
    model = DCAEV(4, [8, 8, 8], [0, 0, 0], [0, 0, 0], chunk_frames=4)
    metrics = evaluate_reconstruction(model, Clips(), num_clips=4, batch_size=3, device="cpu")
    assert metrics["lpips"] == 0.25


def test_sources_without_sound_pixels_are_refused() -> None:
    source = Clips()
    with pytest.raises(ValueError, match="none of the first 2 clips"):
        list(sound_batches(_OnlyHoles(), 2, 2, "cpu"))
    assert [len(batch) for batch in sound_batches(source, 5, 2, "cpu")] == [1, 2, 1]


class _OnlyHoles(Clips):
    def batch(self, indices: Sequence[int]) -> Batch:
        batch = super().batch(indices)
        batch.weight.zero_()
        return batch
