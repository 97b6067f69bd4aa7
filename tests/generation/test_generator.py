"""Sampling with guidance: both branches are what training showed the network."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from sana_train.flow.guidance import ClassifierFreeGuidance
from sana_train.flow.samplers import DPMSolverPP2M, Euler, Sampler
from sana_train.flow.schedules import ShiftedLinear
from sana_train.generation.generator import Generator
from sana_train.generation.stage_one import StageOne
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.text.hashed import HashedTextEncoder

CONTEXT_DIM, MAX_TOKENS = 6, 7


class CaptionVelocity(nn.Module):
    """A denoiser whose velocity is constant: the mean of the context under the mask."""

    latent_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.null_context = torch.full((MAX_TOKENS, CONTEXT_DIM), -3.0)
        self.null_context[2:] = 100.0  # masked by captions of two tokens
        self.prepared: list[tuple[Tensor, Tensor]] = []
        self.num_calls = 0

    def prepare(self, context: Tensor, mask: Tensor) -> Tensor:
        self.prepared.append((context, mask))
        weight = mask[..., None].float()
        return (context * weight).sum((1, 2)) / (weight.sum((1, 2)) * context.shape[2])  # (B,)

    def forward(self, latents: Tensor, t: Tensor, state: Tensor, positions: Tensor | None = None) -> Tensor:
        self.num_calls += 1
        return state[:, None, None, None, None].expand_as(latents)


def generator(scale: float, sampler: Sampler | None = None, num_steps: int = 4) -> Generator:
    return Generator(sampler or Euler(), ShiftedLinear(num_steps, 3.0), ClassifierFreeGuidance(scale))


@pytest.fixture
def captions() -> tuple[Tensor, Tensor]:
    context = torch.zeros(2, MAX_TOKENS, CONTEXT_DIM)
    context[0, :2], context[1, :2] = 1.0, 2.0
    mask = torch.zeros(2, MAX_TOKENS, dtype=torch.bool)
    mask[:, :2] = True
    return context, mask


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_guided_velocity_moves_the_noise(
    captions: tuple[Tensor, Tensor], noise: Tensor, scale: float
) -> None:
    velocity = -3.0 + scale * (torch.tensor([1.0, 2.0]) + 3.0)
    sample = generator(scale)(CaptionVelocity(), *captions, noise)
    assert torch.allclose(sample, noise - velocity[:, None, None, None, None], atol=1e-5)


def test_the_null_context_goes_with_the_captions_own_mask(
    captions: tuple[Tensor, Tensor], noise: Tensor
) -> None:
    denoiser = CaptionVelocity()
    context, mask = captions
    generator(2.0)(denoiser, context[:, :5], mask[:, :5], noise)  # shorter than the null context
    ((doubled, masks),) = denoiser.prepared  # once per sample, not per step
    assert torch.equal(doubled[:2], context[:, :5])
    assert torch.equal(doubled[2:], denoiser.null_context[:5].expand(2, -1, -1))
    assert torch.equal(masks, torch.cat([mask[:, :5]] * 2))
    assert denoiser.num_calls == 4


def test_scale_one_is_the_plain_sampler_on_the_plain_network(noise: Tensor) -> None:
    torch.manual_seed(0)
    dit = SanaVideoDiT(4, [1, 1, 1], 1, 48, 2, 2, 2.0, CONTEXT_DIM, MAX_TOKENS, caption_norm_init=1.0)
    context = torch.randn(2, MAX_TOKENS, CONTEXT_DIM)
    mask = torch.arange(MAX_TOKENS) < torch.tensor([[2], [MAX_TOKENS]])
    state = dit.prepare(context, mask)
    sampler, sigmas = DPMSolverPP2M(), ShiftedLinear(4, 3.0).sigmas()
    with torch.no_grad():
        plain = sampler.sample(lambda latents, t: dit(latents, t, state), noise, sigmas)
    guided = generator(1.0, sampler)(dit, context, mask, noise)
    assert torch.equal(guided, plain)
    assert not guided.requires_grad
    # Both branches computed and combined at nearly 1 give the same: nothing is mixed up between halves.
    doubled = generator(1.0 + 1e-6, sampler)(dit, context, mask, noise)
    assert torch.allclose(doubled, plain, atol=1e-4)
    assert not torch.allclose(generator(4.5, sampler)(dit, context, mask, noise), plain, atol=1e-2)


def test_samples_do_not_depend_on_the_batch(noise: Tensor) -> None:
    torch.manual_seed(0)
    dit = SanaVideoDiT(4, [1, 1, 1], 1, 48, 2, 2, 2.0, CONTEXT_DIM, MAX_TOKENS, caption_norm_init=1.0)
    context = torch.randn(2, MAX_TOKENS, CONTEXT_DIM)
    mask = torch.arange(MAX_TOKENS) < torch.tensor([[2], [5]])
    both = generator(3.0)(dit, context, mask, noise)
    alone = generator(3.0)(dit, context[1:], mask[1:], noise[1:])
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_progress_is_told_of_every_step(captions: tuple[Tensor, Tensor], noise: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    generator(2.0, num_steps=3)(CaptionVelocity(), *captions, noise, lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_what_a_diverged_dit_makes_is_named_by_clip() -> None:
    text = HashedTextEncoder(CONTEXT_DIM, MAX_TOKENS)
    denoiser = CaptionVelocity()
    stage_one = StageOne(denoiser, text, generator(1.0), torch.device("cpu"), nullcontext)
    context, mask = stage_one.encode(["a cube", "a disc"])
    context[1] = torch.nan
    with pytest.raises(ValueError, match=r"clips \[7, 9\] are not finite; are the weights a diverged"):
        stage_one.generate(context, mask, 0, torch.tensor([7, 9]), (4, 2, 2, 2))
