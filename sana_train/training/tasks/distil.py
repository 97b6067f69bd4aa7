"""Step distillation of stage 2: a few evaluations learn to end where many of its teacher's end.

Both begin where stage 2 begins. The teacher, which is the network before, walks each step of the schedule in
several; the student walks it in one, from where its own last step ended, so that it learns to mend what it
does itself. Legend: B clips, N video tokens, C channels, L audio tokens, Ca audio channels.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from sana_train.flow.objective import velocity_loss
from sana_train.flow.time_sampling import Uniform
from sana_train.protocols import Autoencoder, Reader, TextEncoder
from sana_train.refiners.audio import MODES
from sana_train.refiners.ltx2 import LTX2Refiner, pack
from sana_train.refiners.primed import PrimedRotations
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.training.tasks.refine import RefineTask, compile_blocks
from sana_train.types import Batch
from sana_train.utils.rng import SampleRng

_Streams = tuple[Tensor, Tensor]  # video (B, N, C), audio (B, L, Ca)


class DistilTask(RefineTask):
    """Regression of the teacher's states at the times of the refiner's schedule.

    Args:
        refiner: with the weights of the teacher, of which the student is a copy; its schedule and its audio
            mode are what the student is distilled to.
        autoencoder, upsampler, text_encoder, reader, fps, audio_weight, num_heldout_clips: of ``RefineTask``.
        num_teacher_steps: Euler steps of the teacher for each evaluation of the student.
        compile_mode: ``blocks`` compiles the blocks of both, ``none`` nothing.
    """

    def __init__(
        self,
        refiner: LTX2Refiner,
        autoencoder: Autoencoder,
        upsampler: LTX2Upsampler | None,
        text_encoder: TextEncoder,
        reader: Reader | None,
        fps: float,
        audio_weight: float,
        num_heldout_clips: int,
        num_teacher_steps: int,
        compile_mode: Literal["none", "blocks"],
    ) -> None:
        if num_teacher_steps < 2:
            raise ValueError(
                f"num_teacher_steps={num_teacher_steps}: with one step for each of the student's the teacher "
                "has nothing to teach; give 2 at least"
            )
        self.teacher = copy.deepcopy(refiner).requires_grad_(False).eval()
        super().__init__(
            refiner, autoencoder, upsampler, text_encoder, reader, Uniform(), fps, audio_weight,
            num_heldout_clips, "none",
        )  # fmt: skip
        self.frozen = [*self.frozen, self.teacher]
        self._rotations = (self.rotations, PrimedRotations(self.teacher.transformer))
        self.times: list[float] = refiner.schedule.sigmas().tolist()
        self.num_teacher_steps = num_teacher_steps
        if compile_mode == "blocks":
            compile_blocks(refiner)
            compile_blocks(self.teacher)

    def step(self, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        """``loss``; ``video`` and ``audio`` alone; ``end``, squared distance of the two ends: each (B,)."""
        latents, stage_one = self.pairs(batch)
        prompts = self.prompts(batch, latents.device)
        noise = rng.normal("noise", tuple(latents.shape[1:]))
        audio_noise = rng.normal("audio_noise", self.refiner.audio_shape(self.as_latents(latents)))
        first = self.times[0]
        video = pack((1.0 - first) * stage_one + first * noise)
        start = (video, MODES[self.refiner.audio].start(audio_noise, first))
        grid = (latents.shape[2], latents.shape[3], latents.shape[4])
        for rotations in self._rotations:
            rotations.prime(len(latents), grid, audio_noise.shape[1], self.fps, latents.device)
        return self._losses_of(start, self._taught(start, prompts, grid), prompts, grid)

    @torch.no_grad()
    def _taught(
        self, start: _Streams, prompts: PromptEmbeddings, grid: tuple[int, int, int]
    ) -> list[_Streams]:
        """The teacher's states at every time of the schedule but the first."""
        states: list[_Streams] = []
        state = start
        for upper, lower in zip(self.times[:-1], self.times[1:], strict=True):
            step = (upper - lower) / self.num_teacher_steps
            for i in range(self.num_teacher_steps):
                moved = self._evaluate(self.teacher, state, upper - i * step, prompts, grid)
                state = (state[0] - step * moved[0], state[1] - step * moved[1])
            states.append(state)
        return states

    def _losses_of(
        self,
        start: _Streams,
        taught: list[_Streams],
        prompts: PromptEmbeddings,
        grid: tuple[int, int, int],
    ) -> dict[str, Tensor]:
        state, video_losses, audio_losses = start, [], []
        for i, target in enumerate(taught):
            step = self.times[i] - self.times[i + 1]
            moved = self._evaluate(self.refiner, state, self.times[i], prompts, grid)
            video_losses.append(velocity_loss(moved[0], (state[0] - target[0]) / step))
            audio_losses.append(velocity_loss(moved[1], (state[1] - target[1]) / step))
            state = (state[0] - step * moved[0].detach(), state[1] - step * moved[1].detach())
        video, audio = (torch.stack(each).mean(0) for each in (video_losses, audio_losses))
        end = (state[0] - taught[-1][0]).square().flatten(1).mean(1)
        return {"loss": video + self.audio_weight * audio, "video": video, "audio": audio, "end": end}

    def _evaluate(
        self,
        network: LTX2Refiner,
        state: _Streams,
        time: float,
        prompts: PromptEmbeddings,
        grid: tuple[int, int, int],
    ) -> _Streams:
        t = torch.full((len(state[0]),), time, device=state[0].device)
        moved, heard = network.velocities(*state, t, prompts, grid, self.fps)
        return moved, torch.zeros_like(heard) if MODES[self.refiner.audio].is_clean else heard
