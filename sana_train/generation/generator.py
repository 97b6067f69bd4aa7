"""Caption context -> latents, with a sampler, a schedule and classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from sana_train.flow.guidance import ClassifierFreeGuidance
from sana_train.flow.samplers import Progress, Sampler, Velocity
from sana_train.flow.schedules import SigmaSchedule
from sana_train.generation.captured import CapturedVelocity
from sana_train.protocols import Denoiser


class Generator:
    """Generates normalised latents.

    Args:
        sampler: of ``sana_train.flow.samplers``.
        schedule: of ``sana_train.flow.schedules``; SANA-Video samples with 50 steps and shift 8.
        guidance: classifier-free guidance; scale 1 turns it off.
        use_cuda_graph: on a GPU, launch the kernels of an evaluation together. Pays where evaluations are
            short; needs a denoiser that is whole on one GPU.
    """

    def __init__(
        self,
        sampler: Sampler,
        schedule: SigmaSchedule,
        guidance: ClassifierFreeGuidance,
        use_cuda_graph: bool = False,
    ) -> None:
        self.sampler, self.schedule, self.guidance = sampler, schedule, guidance
        self.use_cuda_graph = use_cuda_graph

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        context: Tensor,
        mask: Tensor,
        noise: Tensor,
        progress: Progress | None = None,
    ) -> Tensor:
        """Context (B, S, D), mask (B, S) bool, noise (B, C, T, H, W) -> normalised latents like ``noise``."""
        velocity = self._velocity(denoiser, context, mask)
        if self.use_cuda_graph and noise.is_cuda:
            velocity = CapturedVelocity(velocity)
        return self.sampler.sample(velocity, noise, self.schedule.sigmas(), progress)

    def _velocity(self, denoiser: Denoiser, context: Tensor, mask: Tensor) -> Velocity:
        if not self.guidance.needs_null:
            state = denoiser.prepare(context, mask)
            return lambda latents, t: denoiser(latents, t, state)
        # The null context goes with the caption's own mask, as in training (see text.dropout).
        null = denoiser.null_context[: context.shape[1]].to(context).expand_as(context)
        doubled = denoiser.prepare(torch.cat([context, null]), torch.cat([mask, mask]))
        return self.guidance.from_doubled(lambda latents, t: denoiser(latents, t, doubled))
