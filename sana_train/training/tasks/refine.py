"""Training stage 2: flow matching of an audio-visual transformer, in stage 1's space at a larger size.

The transformer never sees stage 1's latents in training: at the first sigma of its walk nine tenths of the
state are noise, and what it learns is to take latents of that noise to clean ones of the larger size, with
what the caption and the audio say. Legend: B clips, N video tokens, L audio tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sana_train.data.world.sound import sound
from sana_train.evaluation.two_stage import compare, heldout_means, stage_one_like
from sana_train.flow.objective import velocity_loss
from sana_train.flow.path import noisy_latents, velocity_target
from sana_train.flow.time_sampling import TimeSampler
from sana_train.protocols import Autoencoder, ClipSource, Reader, TextEncoder
from sana_train.refiners.ltx2 import LTX2Refiner, pack
from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.training.tasks.diffusers_export import publish_diffusers, round_to_bf16
from sana_train.training.tasks.inputs import caption_context, normalised_latents
from sana_train.types import Batch, VideoLatents
from sana_train.utils.rng import SampleRng


class RefineTask:
    """Velocity regression of video and audio latents at one time per clip.

    Args:
        refiner: its transformer is what trains.
        autoencoder: of both stages, frozen.
        text_encoder: its context is read by both streams.
        reader: reads attributes off refined clips at the end; None where there is no such thing.
        time_sampler: distribution of t.
        fps: of the clips.
        audio_weight: of the audio stream's loss.
        num_heldout_clips: that the result is judged by.
        compile_mode: ``torch.compile`` mode of the transformer, or ``none``.
    """

    reads: Literal["latents"] = "latents"

    def __init__(
        self,
        refiner: LTX2Refiner,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        reader: Reader | None,
        time_sampler: TimeSampler,
        fps: float,
        audio_weight: float,
        num_heldout_clips: int,
        compile_mode: Literal["none", "default", "reduce-overhead"],
    ) -> None:
        self.refiner, self.autoencoder, self.text_encoder = refiner, autoencoder, text_encoder
        self.reader, self.time_sampler, self.fps = reader, time_sampler, fps
        self.audio_weight, self.num_heldout_clips = audio_weight, num_heldout_clips
        self._space = autoencoder.fingerprint()
        self.model: nn.Module = refiner.transformer.requires_grad_(True).train()
        encoders: list[Any] = [autoencoder, text_encoder]
        self.frozen = [each.requires_grad_(False).eval() for each in encoders if isinstance(each, nn.Module)]
        self._losses: Callable[..., dict[str, Tensor]] = self._plain_losses
        if compile_mode != "none":
            self._losses = torch.compile(self._plain_losses, mode=compile_mode, dynamic=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"name": "all", "params": list(self.model.parameters())}]

    def step(self, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        """``loss``, and ``video`` and ``audio`` alone, each (B,)."""
        latents = normalised_latents(batch, self.autoencoder)
        prompts = self._prompts(batch, latents.device)
        audio = self._audio(batch, latents)
        noise = rng.normal("noise", tuple(latents.shape[1:]))
        audio_noise = rng.normal("audio_noise", tuple(audio.shape[1:]))
        t = self.time_sampler.sample(rng)
        return self._losses(latents, audio, noise, audio_noise, t, prompts.video, prompts.mask)

    def _plain_losses(
        self,
        latents: Tensor,
        audio: Tensor,
        noise: Tensor,
        audio_noise: Tensor,
        t: Tensor,
        context: Tensor,
        mask: Tensor,
    ) -> dict[str, Tensor]:
        grid = (latents.shape[2], latents.shape[3], latents.shape[4])
        moved, heard = self.refiner.velocities(
            pack(noisy_latents(latents, noise, t)),
            noisy_latents(audio, audio_noise, t),
            t,
            PromptEmbeddings(context, context, mask),
            grid,
            self.fps,
        )
        video_loss = velocity_loss(moved, pack(velocity_target(latents, noise)))
        audio_loss = velocity_loss(heard, velocity_target(audio, audio_noise))
        return {"loss": video_loss + self.audio_weight * audio_loss, "video": video_loss, "audio": audio_loss}

    def _prompts(self, batch: Batch, device: torch.device) -> PromptEmbeddings:
        context, mask = caption_context(batch, self.text_encoder, device)
        return PromptEmbeddings(context, context, mask)

    def _audio(self, batch: Batch, latents: Tensor) -> Tensor:
        """(B, L, Ca) clean audio latents of the world.

        Raises:
            ValueError: clips that do not say how their objects move.
        """
        if "motion" not in batch.attributes:
            raise ValueError(
                "these clips do not say how their objects move, which the refiner's audio follows; only "
                "clips of the procedural world tell"
            )
        length, channels = self.refiner.audio_shape(self._as_latents(latents))
        return sound(batch.attributes["motion"].to(latents.device), length, channels)

    def _as_latents(self, values: Tensor) -> VideoLatents:
        return VideoLatents(values, self._space, True, self.fps)

    def export(
        self, directory: Path, train: ClipSource, heldout: ClipSource, record: dict[str, Any]
    ) -> dict[str, float]:
        """Round to bf16, judge on held-out clips, publish a diffusers folder and ``record.json``.

        Returns:
            The held-out metrics: of stage-1-like clips resized (``before``) and of refined ones (``after``).
        """
        del train
        round_to_bf16(self.model)
        metrics = self.judge(heldout)
        publish_diffusers(directory, "transformer", self.model, {**record, "heldout": metrics})
        return metrics

    def judge(self, heldout: ClipSource) -> dict[str, float]:
        """Held-out metrics, means over clips to which they apply."""
        self.model.eval()
        device = next(self.model.parameters()).device
        return heldout_means(self._judge, heldout, self.num_heldout_clips, device)

    def _judge(self, batch: Batch) -> dict[str, Tensor]:
        values = normalised_latents(batch, self.autoencoder)
        truth = self._decode(values)
        before = stage_one_like(truth, self.autoencoder)
        latents = self._as_latents(self.autoencoder.normalise(self.autoencoder.encode(before).float()))
        rng = SampleRng(0, batch.index)
        noise = rng.normal("refine/video", tuple(values.shape[1:]))
        audio_noise = rng.normal("refine/audio", self.refiner.audio_shape(latents))
        refined = self.refiner.refine(latents, self._prompts(batch, values.device), noise, audio_noise)
        clips = {"before": before, "after": self._decode(refined.values)}
        return compare(clips, truth, self.reader, batch.attributes)

    def _decode(self, values: Tensor) -> Tensor:
        return self.autoencoder.decode(self.autoencoder.denormalise(values)).float()
