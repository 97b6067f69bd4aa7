"""Where each column comes from, with networks small enough to see through."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.evaluation.stages.columns import TwoStages
from sana_train.evaluation.stages.names import Column
from sana_train.flow.guidance import ClassifierFreeGuidance
from sana_train.flow.samplers import Euler
from sana_train.flow.schedules import ShiftedLinear
from sana_train.generation.generator import Generator
from sana_train.generation.stage_one import StageOne
from sana_train.text.hashed import HashedTextEncoder
from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.types import Batch, LatentSpec, VideoLatents, VideoShape
from sana_train.utils.resizing import resized
from sana_train.utils.rng import SampleRng

CAPTIONS = ("a red cube", "a blue disc", "a green ring")
CPU = torch.device("cpu")
ALL: tuple[Column, ...] = ("stage1", "stage2", "ceiling", "clip_stage1", "clip_stage2", "noise", "foreign")


class Halves(VideoAutoencoder):
    """Latents are clips of half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = LatentSpec(3, 1, 2, 2, temporal="causal")

    def encode(self, video: Tensor) -> Tensor:
        return resized(video, video.shape[3] // 2, video.shape[4] // 2)

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        return resized(latents, 2 * latents.shape[3], 2 * latents.shape[4])

    def statistics(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(3), torch.full((3,), 0.5)

    def reset_parameters(self) -> None:
        pass


class Towards:
    """Velocity to a colour that the caption decides; the state of a prepared caption is its mean."""

    latent_channels = 3
    null_context = torch.zeros(8, 16)

    def prepare(self, context: Tensor, mask: Tensor) -> Tensor:
        return context.mean((1, 2))

    def __call__(self, latents: Tensor, t: Tensor, state: Tensor, positions: Any = None) -> Tensor:
        return latents - 4 * state[:, None, None, None, None]


class Halfway:
    """Refines to the mean of latents and noise; from unit noise to the noise. Adds what the prompt says."""

    spec = Halves().spec

    def audio_shape(self, latents: VideoLatents) -> tuple[int, int]:
        return 1, 1

    def refine(
        self, latents: VideoLatents, prompts: PromptEmbeddings, noise: Tensor, audio: Tensor, from_noise: bool
    ) -> VideoLatents:
        start = noise if from_noise else (latents.values + noise) / 2
        return VideoLatents(start, latents.space, True, latents.fps)


class Through(Halfway):
    """Gives latents back as they are."""

    def refine(self, latents: VideoLatents, *rest: Any, **more: Any) -> VideoLatents:
        return latents


THROUGH = Through()


class Nearest:
    """Doubles by repetition, and remembers that it was asked."""

    num_calls = 0

    def upsample(self, latents: VideoLatents, autoencoder: Any) -> VideoLatents:
        self.num_calls += 1
        values = latents.values.repeat_interleave(2, 3).repeat_interleave(2, 4)
        return VideoLatents(values, latents.space, latents.is_normalised, latents.fps)


GENERATOR = Generator(Euler(), ShiftedLinear(2, 1.0), ClassifierFreeGuidance(1.0))
TEXT = HashedTextEncoder(16, 8)


def embed(captions: Any) -> PromptEmbeddings:
    context, mask = TEXT.encode(captions)
    return PromptEmbeddings(context, context, mask)


def stages(**changes: Any) -> TwoStages:
    stage_one = StageOne(Towards(), TEXT, GENERATOR, CPU, nullcontext)  # type: ignore[arg-type]
    parts: dict[str, Any] = {"stage_one": stage_one, "autoencoder": Halves(), "refiner": Halfway()}
    parts |= {"upsampler": None, "embed": embed, "fps": 8.0, "seed": 3, "precision": nullcontext}
    return TwoStages(**{**parts, "device": CPU, **changes})


def batch(*numbers: int) -> Batch:
    index = torch.tensor(numbers)
    video = SampleRng(0, index).uniform("clip", (3, 3, 16, 16)) * 2 - 1
    captions = tuple(CAPTIONS[number] for number in numbers)
    return Batch(index, index, torch.ones(len(numbers)), captions, video)


def make(which: TwoStages, *numbers: int, columns: tuple[Column, ...] = ALL) -> dict[Column, Tensor]:
    following = [(number + 1) % 3 for number in numbers]
    return which.make(batch(*numbers), batch(*following), columns)[0]


def test_stage_one_is_what_the_generator_makes_of_the_clips_number() -> None:
    made = make(stages(), 2, columns=("stage1",))["stage1"]
    context, mask = TEXT.encode(CAPTIONS[2:])
    noise = SampleRng(3, torch.tensor([2])).normal("samples", (3, 3, 4, 4))
    space = Halves()
    latents = GENERATOR(Towards(), context, mask, noise)  # type: ignore[arg-type]
    torch.testing.assert_close(made, resized(space.decode(space.denormalise(latents)), 16, 16))


def test_a_single_stage_is_sampled_at_the_target_size_and_needs_no_refiner() -> None:
    alone = stages(refiner=None)
    alone.require(("single",), VideoShape(3, 16, 16))
    made = make(alone, 2, columns=("single",))["single"]
    context, mask = TEXT.encode(CAPTIONS[2:])
    assert alone.stage_one is not None
    values = alone.stage_one.generate(context, mask, 3, torch.tensor([2]), (3, 3, 8, 8))
    space = alone.autoencoder
    torch.testing.assert_close(made, space.decode(space.denormalise(values)))


def test_a_clip_does_not_depend_on_those_beside_it() -> None:
    together = make(stages(), 0, 1, 2)
    for number in range(3):
        alone = make(stages(), number)
        for column in ALL:
            torch.testing.assert_close(together[column][number : number + 1], alone[column])


def test_foreign_is_the_next_clips_sample_with_this_clips_noise() -> None:
    passed = make(stages(refiner=THROUGH), 0, 1, 2, columns=("stage2", "foreign"))
    torch.testing.assert_close(passed["foreign"], passed["stage2"].roll(-1, dims=0))
    noised = make(stages(), 0, 1, 2, columns=("stage2", "foreign"))
    assert not torch.allclose(noised["foreign"], noised["stage2"].roll(-1, dims=0))


def test_foreign_latents_are_refined_with_this_clips_caption() -> None:
    says = type(
        "Says",
        (Halfway,),
        {
            "refine": lambda self, z, prompts, *a, **k: replace(
                z, values=0 * z.values + prompts.video[0, 0, 0] / 9
            )
        },
    )
    made = make(stages(refiner=says()), 1, columns=("stage2", "foreign", "noise"))
    torch.testing.assert_close(made["foreign"], made["stage2"])
    assert not torch.allclose(made["stage2"], make(stages(refiner=says()), 2, columns=("stage2",))["stage2"])


def test_noise_does_not_know_what_stage_one_made() -> None:
    longer = Generator(Euler(), ShiftedLinear(7, 1.0), GENERATOR.guidance)
    other = StageOne(Towards(), TEXT, longer, CPU, nullcontext)  # type: ignore[arg-type]
    one = make(stages(), 0, 1, columns=("stage2", "noise"))
    two = make(stages(stage_one=other), 0, 1, columns=("stage2", "noise"))
    torch.testing.assert_close(one["noise"], two["noise"])
    assert not torch.allclose(one["stage2"], two["stage2"])


def test_the_clip_itself_takes_the_place_of_the_sample_and_needs_no_dit() -> None:
    which = stages(stage_one=None, refiner=THROUGH)
    made = make(which, 0, columns=("clip_stage1", "clip_stage2", "ceiling"))
    space = Halves()
    small = space.encode(resized(batch(0).video, 8, 8))  # type: ignore[arg-type]
    larger = space.encode(resized(space.decode(small), 16, 16))
    torch.testing.assert_close(made["clip_stage1"], resized(space.decode(small), 16, 16))
    torch.testing.assert_close(made["clip_stage2"], space.decode(larger))
    torch.testing.assert_close(made["ceiling"], space.decode(space.encode(batch(0).video)))  # type: ignore[arg-type]


def test_an_upsampler_replaces_the_way_through_pixels() -> None:
    upsampler = Nearest()
    one = make(stages(upsampler=upsampler), 0, columns=("stage2",))["stage2"]
    assert upsampler.num_calls == 1
    assert one.shape == (1, 3, 3, 16, 16)
    assert not torch.allclose(one, make(stages(), 0, columns=("stage2",))["stage2"])


def test_seconds_are_those_of_one_clip_by_part() -> None:
    _, seconds = stages().make(batch(0, 1), batch(1, 2), ("stage1", "stage2", "noise"))
    assert set(seconds) == {"text", "stage1", "upsample", "stage2", "decode"}
    _, seconds = stages().make(batch(0), batch(1), ("ceiling",))
    assert seconds == {}


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"refiner": None}, (3, 16, 16), r"columns stage2, .* need a refiner; .*refiner=<option>"),
        ({}, (3, 16, 18), "cannot be halved into latents of 2x2 px; .* multiples of 4 and 4 px"),
        (
            {"refiner": type("Other", (Halfway,), {"spec": LatentSpec(9, 1, 2, 2)})()},
            (3, 16, 16),
            "the refiner reads .*channels=9",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: Any, size: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stages(**changes).require(ALL, VideoShape(*size))
    stages().require(ALL, VideoShape(3, 16, 16))
