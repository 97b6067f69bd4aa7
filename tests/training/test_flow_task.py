"""The flow task's loss, held against its definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_harness import make_clips, make_task

from sana_train.training.tasks.flow import FlowTask
from sana_train.training.tasks.inputs import normalised_latents
from sana_train.types import Batch
from sana_train.utils.rng import SampleRng

ORDINALS = torch.arange(100, 106)


class Recorded(FlowTask):
    """Keeps what the network was shown."""

    def _plain_loss(self, latents: Tensor, noise: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        self.shown = (latents, noise, t, context, mask)
        return super()._plain_loss(latents, noise, t, context, mask)


def step(task: FlowTask, batch: Batch, seed: int = 3) -> Tensor:
    return task.step(batch, SampleRng(seed, ORDINALS))["loss"]


def test_the_loss_is_the_velocitys_squared_error_per_sample() -> None:
    task, batch = make_task(kind=Recorded), make_clips().batch(range(6))
    loss = step(task, batch)
    assert isinstance(task, Recorded)
    latents, noise, t, context, mask = task.shown
    assert batch.latents is not None
    assert torch.equal(latents, batch.latents * 0.5)  # normalised
    t_ = t[:, None, None, None, None]
    predicted = task.model((1 - t_) * latents + t_ * noise, t, task.model.prepare(context, mask))
    expected = (predicted - (noise - latents)).square().mean(dim=(1, 2, 3, 4))
    assert loss.shape == (6,)
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_randomness_belongs_to_the_sample_not_to_the_batch() -> None:
    task, batch = make_task(), make_clips().batch(range(6))
    together = step(task, batch)
    part = make_clips().batch(range(2, 4))
    alone = task.step(part, SampleRng(3, ORDINALS[2:4]))["loss"]
    assert torch.allclose(alone, together[2:4], rtol=1e-5)
    assert not torch.allclose(step(task, batch, seed=4), together, rtol=1e-2)


def test_a_dropped_caption_becomes_the_null_context_under_its_own_mask() -> None:
    task, batch = make_task(kind=Recorded), make_clips().batch(range(6))
    task.caption_dropout_prob = 1.0
    step(task, batch)
    assert isinstance(task, Recorded)
    _, _, _, context, mask = task.shown
    assert torch.equal(context, task.model.null_context.expand(6, -1, -1))
    assert torch.equal(mask, batch.context_mask)
    task.caption_dropout_prob = 0.0
    step(task, batch)
    assert torch.equal(task.shown[3], batch.context)


def test_pixels_and_captions_are_encoded_where_a_batch_brings_no_latents() -> None:
    task, batch = make_task(), make_clips().batch(range(6))
    assert batch.latents is not None
    task.autoencoder.encode = lambda video: video[:, :1].expand(-1, 4, -1, -1, -1)  # type: ignore[method-assign]
    context, mask = batch.context, batch.context_mask
    task.text_encoder.encode = lambda captions: (context, mask)  # type: ignore[method-assign]
    video = torch.randn(6, 3, 2, 3, 3)
    online = replace(batch, video=video, latents=None, context=None, context_mask=None)
    cached = replace(batch, latents=video[:, :1].expand(-1, 4, -1, -1, -1))
    assert torch.equal(step(task, online), step(task, cached))


def test_a_clip_has_the_same_latents_inside_the_trainers_precision() -> None:
    task, batch = make_task(), make_clips().batch(range(6))
    conv = torch.nn.Conv3d(3, 4, 1)
    task.autoencoder.encode = conv  # type: ignore[method-assign]
    online = replace(batch, video=torch.randn(6, 3, 2, 3, 3), latents=None)
    outside = normalised_latents(online, task.autoencoder)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(online.video).dtype == torch.bfloat16
        assert torch.equal(normalised_latents(online, task.autoencoder), outside)


def test_export_writes_weights_that_load_back(tmp_path: Path) -> None:
    task, clips = make_task(), make_clips()
    task.export(tmp_path / "export", clips, clips, {"steps": 7})
    state = load_file(tmp_path / "export" / "model.safetensors")
    assert {state[name].dtype for name, _ in task.model.named_parameters()} == {torch.bfloat16}
    task.model.load_state_dict(state)
    assert (tmp_path / "export" / "record.json").is_file()


def test_a_denoiser_for_another_space_is_refused() -> None:
    batch = make_clips().batch(range(6))
    assert batch.latents is not None
    wrong = replace(batch, latents=batch.latents[:, :3])
    with pytest.raises(ValueError, match="another autoencoder"):
        step(make_task(), wrong)
