"""Training the latent upsampler at toy size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.cli.config import RefineConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import load_as
from sana_train.cli.preflight import check_overrides
from sana_train.data.world.clips import WorldClips
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.training.tasks.upsample import UpsampleTask
from sana_train.utils.rng import SampleRng


def make_task(**changes: Any) -> UpsampleTask:
    torch.manual_seed(0)
    config = load_as(check_overrides(["autoencoder=ltx2_tiny"], "refine", RefineConfig), RefineConfig)
    space = instantiate(config.autoencoder)  # the shipped one
    return UpsampleTask(LTX2Upsampler(128, 32, 1, dtype="float32", **changes), space, 4, "none")


def clips(num: int, split: Any = "train") -> WorldClips:
    return WorldClips(split, num, frames=9, size_px=128)


def test_the_loss_falls() -> None:
    task, batch = make_task(), clips(4).batch(range(4))
    optimiser = torch.optim.Adam(task.model.parameters(), 3e-3)
    values = []
    for _ in range(20):
        loss = task.step(batch, SampleRng(0, batch.ordinals))["loss"]
        assert loss.shape == (4,)
        values.append(float(loss.detach().mean()))
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    assert values[-1] < 0.8 * values[0]
    assert all(not parameter.requires_grad for module in task.frozen for parameter in module.parameters())


def test_what_is_published_is_what_was_judged(tmp_path: Path) -> None:
    task, heldout = make_task(), clips(4, "heldout")
    metrics = task.export(tmp_path / "export", heldout, heldout, {})
    assert set(metrics) == {
        f"{when}/{what}" for when in ("before", "after") for what in ("psnr_db", "spectrum_gap")
    }
    again = make_task(weights=str(tmp_path / "export"))
    assert again.judge(heldout) == pytest.approx(metrics, rel=1e-4)


def test_without_an_upsampler_nothing_is_left_to_train() -> None:
    task = make_task()
    with pytest.raises(ValueError, match="upsampler=<option>"):
        UpsampleTask(None, task.autoencoder, 4, "none")


def test_encoded_pairs_train_as_pixels_do() -> None:
    task, batch = make_task(), clips(2).batch(range(2))
    rng = SampleRng(0, batch.ordinals)
    online = task.step(batch, rng)["loss"]
    assert batch.video is not None
    with torch.no_grad():
        batch.latents, batch.video = task.encoder.encode(batch.video), None
    torch.testing.assert_close(task.step(batch, rng)["loss"], online)
