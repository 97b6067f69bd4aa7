"""A decoder of its own for large clips, in the latent space that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.autoencoders.two_decoders import LTX2TwoDecoders
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import REPOSITORY, compose_config, load
from sana_train.data.world.clips import WorldClips
from sana_train.training.tasks.large_decoder import LargeDecoderTask
from sana_train.utils.rng import SampleRng


def autoencoder(**changes: Any) -> LTX2TwoDecoders:
    config = load(compose_config(["experiment=tiny/stage2/ltx2_large"]))
    assert config.autoencoder is not None
    return instantiate({**config.autoencoder, "large_from_px": 96, **changes})


def make_task(space: LTX2TwoDecoders) -> LargeDecoderTask:
    return LargeDecoderTask(space, 5.0, 0.1, 3, 0.1, 16, 0.03, 2, "none")


def test_it_learns_and_latents_and_small_clips_stay(tmp_path: Path) -> None:
    space = autoencoder()
    task, source = make_task(space), WorldClips("train", 2, frames=9, size_px=96)
    batch, fingerprint = source.batch(range(2)), space.fingerprint()
    small = WorldClips("train", 1, frames=9, size_px=64).batch([0]).video
    assert batch.video is not None and small is not None
    with torch.no_grad():
        latents, decoded = space.encode(batch.video), space.decode(space.encode(small))
    optimiser = torch.optim.Adam(task.model.parameters(), 2e-4)
    values = []
    for _ in range(20):
        loss = task.step(batch, SampleRng(0, batch.ordinals))["loss"]
        assert loss.shape == (2,)
        values.append(float(loss.detach().mean()))
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    assert values[-1] < 0.97 * values[0]
    assert space.fingerprint() == fingerprint
    with torch.no_grad():
        assert torch.equal(space.encode(batch.video), latents)
        assert torch.equal(space.decode(space.encode(small)), decoded)
    metrics = task.export(tmp_path / "large", source, source, {})
    again = autoencoder(large_weights=str(tmp_path / "large"))
    assert again.fingerprint() == fingerprint
    with torch.no_grad():
        torch.testing.assert_close(again.decode(latents), space.decode(latents))
    assert metrics["num_clips"] == 2


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    task = make_task(autoencoder())
    batch = WorldClips("train", 1, frames=9, size_px=64).batch([0])
    with pytest.raises(ValueError, match="from 96 px on"):
        task.step(batch, SampleRng(0, batch.ordinals))
    with pytest.raises(FileNotFoundError, match="tiny/stage2/ltx2_large"):
        autoencoder(large_weights=str(tmp_path))
    whole = (REPOSITORY / "data" / "tiny" / "ltx2_large" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match="is damaged or incomplete"):
        autoencoder(large_weights=str(tmp_path))
