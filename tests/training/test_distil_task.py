"""Step distillation at toy size: the student's end comes nearer to the teacher's, which stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.cli.config import RefineConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import load_as
from sana_train.cli.preflight import check_overrides
from sana_train.data.world.clips import WorldClips
from sana_train.refiners.ltx2 import LTX2Refiner
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.text.hashed import HashedTextEncoder
from sana_train.training.tasks.distil import DistilTask
from sana_train.utils.rng import SampleRng

TINY: dict[str, Any] = {
    "sigmas": {2: [0.9, 0.4, 0.0]},
    "num_evaluations": 2,
    "num_layers": 1,
    "num_heads": 2,
    "head_dim": 24,
    "audio_channels": 8,
    "audio_num_heads": 2,
    "audio_head_dim": 8,
    "caption_channels": 32,
    "base_size_px": 64,
    "dtype": "float32",
}


def make_task(num_teacher_steps: int = 3) -> DistilTask:
    torch.manual_seed(0)
    config = load_as(check_overrides(["autoencoder=ltx2_tiny"], "refine", RefineConfig), RefineConfig)
    space: VideoAutoencoder = instantiate(config.autoencoder)
    refiner, upsampler = LTX2Refiner(**TINY), LTX2Upsampler(128, 32, 1, dtype="float32")
    text = HashedTextEncoder(32, 48)
    return DistilTask(refiner, space, upsampler, text, None, 16.0, 0.1, 4, num_teacher_steps, "none")


def test_the_student_comes_nearer_and_the_teacher_stays() -> None:
    task, batch = make_task(), WorldClips("train", 2, frames=9, size_px=64).batch(range(2))
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    optimiser = torch.optim.Adam(task.model.parameters(), 1e-3)
    ends = []
    for _ in range(30):
        losses = task.step(batch, SampleRng(0, batch.ordinals))
        assert {name: tuple(value.shape) for name, value in losses.items()} == dict.fromkeys(
            ("loss", "video", "audio", "end"), (2,)
        )
        ends.append(float(losses["end"].detach().mean()))
        optimiser.zero_grad()
        losses["loss"].mean().backward()
        optimiser.step()
    assert ends[-1] < 0.8 * ends[0]
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.state_dict().items())


def test_the_student_begins_as_its_teacher_walked_in_fewer_steps() -> None:
    """The taught end is an Euler walk of the refiner itself over the finer times."""
    task, batch = make_task(2), WorldClips("train", 2, frames=9, size_px=64).batch(range(2))
    with torch.no_grad():
        measured = task.step(batch, SampleRng(0, batch.ordinals))["end"]
        latents, stage_one = task.pairs(batch)
        rng = SampleRng(0, batch.ordinals)
        noise = rng.normal("noise", tuple(latents.shape[1:]))
        audio_noise = rng.normal("audio_noise", task.refiner.audio_shape(task.as_latents(latents)))
        prompts = task.prompts(batch, latents.device)
        fine = LTX2Refiner(**{**TINY, "sigmas": {4: [0.9, 0.65, 0.4, 0.2, 0.0]}, "num_evaluations": 4})
        ends = []
        for refiner in (task.refiner, fine):
            refiner.transformer.load_state_dict(task.teacher.transformer.state_dict())
            ends.append(refiner.refine(task.as_latents(stage_one), prompts, noise, audio_noise).values)
    torch.testing.assert_close(
        (ends[0] - ends[1]).square().flatten(1).mean(1), measured, rtol=1e-3, atol=1e-5
    )


def test_a_teacher_of_as_many_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to teach"):
        make_task(1)
