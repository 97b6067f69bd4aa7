"""Caption context -> latents, with a sampler, a schedule and classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from sana_train.flow.guidance import ClassifierFreeGuidance
from sana_train.flow.samplers import Progress, Sampler, Velocity
from sana_train.flow.schedules import SigmaSchedule
from sana_train.protocols import Denoiser


class Generator:
    """Generates normalised latents.

    Args:
        sampler: of ``sana_train.flow.samplers``.
        schedule: of ``sana_train.flow.schedules``; SANA-Video samples with 50 steps and shift 8.
        guidance: classifier-free guidance; scale 1 turns it off.
    """

    def __init__(self, sampler: Sampler, schedule: SigmaSchedule, guidance: ClassifierFreeGuidance) -> None:
        self.sampler, self.schedule, self.guidance = sampler, schedule, guidance

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
        return self.sampler.sample(velocity, noise, self.schedule.sigmas(), progress)

    def _velocity(self, denoiser: Denoiser, context: Tensor, mask: Tensor) -> Velocity:
        if not self.guidance.needs_null:
            state = denoiser.prepare(context, mask)
            return lambda latents, t: denoiser(latents, t, state)
        # The null context goes with the caption's own mask, as in training (see text.dropout).
        null = denoiser.null_context[: context.shape[1]].to(context).expand_as(context)
        doubled = denoiser.prepare(torch.cat([context, null]), torch.cat([mask, mask]))
        return self.guidance.from_doubled(lambda latents, t: denoiser(latents, t, doubled))
