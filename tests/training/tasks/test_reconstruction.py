"""The reconstruction task: what its terms see, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sana_train.autoencoders.dc_ae_v import DCAEV
from sana_train.training.tasks.reconstruction import ReconstructionTask
from sana_train.training.tasks.reconstruction_loss import gradient_loss, spectrum_loss
from sana_train.types import Batch
from sana_train.utils.rng import SampleRng


def small_model() -> DCAEV:
    torch.manual_seed(0)
    return DCAEV(4, [16, 16, 16], [1, 0, 0], [1, 0, 0], chunk_frames=4)


def task(model: DCAEV | None = None, **overrides: object) -> ReconstructionTask:
    settings: dict[str, object] = {
        "pixel_weight": 1.0,
        "gradient_weight": 0.5,
        "num_gradient_scales": 2,
        "spectrum_weight": 0.2,
        "spectrum_patch_px": 8,
        "latent_weight": 1e-4,
        "latent_noise_std": 0.05,
        "num_statistics_clips": 4,
        "num_heldout_clips": 4,
        "compile_mode": "none",
    }
    return ReconstructionTask(model or small_model(), **{**settings, **overrides})  # type: ignore[arg-type]


def stripes(phase: float = 0.0) -> torch.Tensor:
    """(1, 3, 2, 16, 16), period 4 px."""
    wave = torch.sin(torch.arange(16) * torch.pi / 2 + phase)
    return wave.expand(1, 3, 2, 16, 16)


def test_spectrum_term_is_blind_to_phase_but_not_to_erasure() -> None:
    moved = spectrum_loss(stripes(phase=0.7), stripes(), 8)
    erased = spectrum_loss(torch.zeros(1, 3, 2, 16, 16), stripes(), 8)
    assert moved.item() < 1e-5
    assert erased.item() > 100 * max(moved.item(), 1e-6)


def test_spectrum_has_the_energy_of_its_patch() -> None:
    # A unit cosine on a grid frequency: all its energy, 8 * 8 / 2, in two conjugate terms of 4^2 each.
    erased = spectrum_loss(torch.zeros(1, 3, 2, 16, 16), stripes(), 8)
    num_frequencies = 8 * 5 - 1
    assert erased.item() == pytest.approx(4.0 / num_frequencies, rel=0.01)


def test_gradient_term_ignores_a_constant_shift_and_measures_an_edge() -> None:
    assert gradient_loss(torch.full((2, 3, 2, 8, 8), 0.3), 3).abs().max().item() == 0.0
    edge = torch.zeros(1, 1, 1, 8, 8)
    edge[..., 4:] = 1.0
    # One of 7 column differences at full size, one of 3 at half; rows have none.
    assert gradient_loss(edge, 2).item() == pytest.approx((1 / 7 + 1 / 3) / 2)


def batch_of(video: torch.Tensor, first: int = 0) -> Batch:
    index = torch.arange(len(video)) + first
    return Batch(index, index, torch.ones(len(video)), ("",) * len(video), video=video)


def test_losses_are_per_clip_and_counted() -> None:
    trained = task()
    video = torch.rand(3, 3, 9, 16, 16) * 2 - 1
    whole = trained.step(batch_of(video), SampleRng(0, torch.arange(3)))
    assert {name: tuple(value.shape) for name, value in whole.items()}["loss"] == (3,)
    part = trained.step(batch_of(video[1:], first=1), SampleRng(0, torch.arange(1, 3)))
    for name, value in whole.items():
        torch.testing.assert_close(value[1:], part[name], rtol=1e-4, atol=1e-5)
    other = trained.step(batch_of(video), SampleRng(1, torch.arange(3)))
    assert not torch.equal(other["pixel"], whole["pixel"])


def test_training_lowers_the_loss_and_reaches_every_parameter() -> None:
    trained = task()
    video = torch.rand(2, 3, 5, 1, 1).expand(-1, -1, -1, 8, 8) * 2 - 1
    groups = trained.parameter_groups()
    optimiser = torch.optim.AdamW(groups, lr=1e-2)
    losses = []
    for step in range(60):
        ordinals = torch.arange(2) + 2 * step
        loss = trained.step(batch_of(video), SampleRng(0, ordinals))["loss"].mean()
        loss.backward()
        assert all(value.grad is not None for group in groups for value in group["params"])
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_latents_alone_are_refused() -> None:
    empty = batch_of(torch.zeros(1, 3, 5, 8, 8))
    empty.video = None
    with pytest.raises(ValueError, match="trains on pixels"):
        task().step(empty, SampleRng(0, torch.arange(1)))


class Clips:
    def __init__(self, seed: int) -> None:
        self.video = torch.rand(6, 3, 9, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1

    def __len__(self) -> int:
        return len(self.video)

    def batch(self, indices: Sequence[int]) -> Batch:
        index = torch.tensor(list(indices))
        return Batch(index, index, torch.ones(len(index)), ("",) * len(index), video=self.video[index])


def test_export_publishes_what_loads_back(tmp_path: Path) -> None:
    model = small_model()
    metrics = task(model).export(tmp_path / "out", Clips(0), Clips(1), {"preset": "test"})
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record == {"preset": "test", "heldout": metrics}
    loaded = DCAEV(4, [16, 16, 16], [1, 0, 0], [1, 0, 0], chunk_frames=4, weights=str(tmp_path / "out"))
    assert loaded.fingerprint() == model.fingerprint()
    assert not torch.equal(loaded.latents_std, torch.ones(4))  # measured, not the neutral start
