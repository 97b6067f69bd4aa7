"""Training stage 2: flow matching of an audio-visual transformer, from stage-1-like latents to clean ones.

At the first sigma s of its walk the state is what stage 2 begins with: the clip's latents at half the size,
upsampled and noised. From there a straight line leads to the clip's own latents at the whole size:

    start = (1 - m) * stage_one + m * noise,  m = max(t, s)
    state = clean + (t / m) * (start - clean)       velocity = (start - clean) / m

Above s it is the usual noising of stage-1-like latents, up to noise alone. Legend: B clips, C channels,
N video tokens, L audio tokens.
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
from sana_train.flow.path import expand_time, noisy_latents, velocity_target
from sana_train.flow.time_sampling import TimeSampler
from sana_train.protocols import Autoencoder, ClipSource, Reader, TextEncoder
from sana_train.refiners.ltx2 import LTX2Refiner, pack
from sana_train.refiners.pairs import StagePairs
from sana_train.refiners.primed import PrimedRotations
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.training.tasks.diffusers_export import publish_diffusers, round_to_bf16
from sana_train.training.tasks.inputs import caption_context, normalised_latents
from sana_train.types import Batch, VideoLatents
from sana_train.utils.compiling import compile_module, compiled_function
from sana_train.utils.rng import SampleRng

CompileMode = Literal["none", "blocks", "default", "reduce-overhead"]


class RefineTask:
    """Velocity regression of video and audio latents at one time per clip.

    Args:
        refiner: its transformer is what trains.
        autoencoder: of both stages, frozen.
        upsampler: makes stage-1-like latents as large as the clip's own, frozen; None: through pixels,
            decoded, resized and encoded again.
        text_encoder: its context is read by both streams.
        reader: reads attributes off refined clips at the end; None where there is no such thing.
        time_sampler: distribution of t.
        fps: of the clips.
        audio_weight: of the audio stream's loss.
        num_heldout_clips: that the result is judged by.
        compile_mode: ``torch.compile`` mode of the loss, ``none``, or ``blocks``: each block of the
            transformer by itself, which takes a fifth of the time to compile.
    """

    reads: Literal["latents"] = "latents"

    def __init__(
        self,
        refiner: LTX2Refiner,
        autoencoder: Autoencoder,
        upsampler: LTX2Upsampler | None,
        text_encoder: TextEncoder,
        reader: Reader | None,
        time_sampler: TimeSampler,
        fps: float,
        audio_weight: float,
        num_heldout_clips: int,
        compile_mode: CompileMode,
    ) -> None:
        self.refiner, self.autoencoder, self.text_encoder = refiner, autoencoder, text_encoder
        self.reader, self.time_sampler, self.fps = reader, time_sampler, fps
        self.audio_weight, self.num_heldout_clips = audio_weight, num_heldout_clips
        self._space = autoencoder.fingerprint()
        self.encoder = StagePairs(autoencoder, "pixels" if upsampler is None else upsampler)
        self.rotations = PrimedRotations(refiner.transformer)
        self.first_sigma = float(refiner.schedule.sigmas()[0])
        self.model: nn.Module = refiner.transformer.requires_grad_(True).train()
        encoders: list[Any] = [autoencoder, upsampler, text_encoder]
        self.frozen = [each.requires_grad_(False).eval() for each in encoders if isinstance(each, nn.Module)]
        self._losses: Callable[..., dict[str, Tensor]] = self._plain_losses
        if compile_mode == "blocks":
            compile_blocks(refiner)
        elif compile_mode != "none":
            self._losses = compiled_function(self._plain_losses, compile_mode)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"name": "all", "params": list(self.model.parameters())}]

    def step(self, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        """``loss``, and ``video`` and ``audio`` alone, each (B,)."""
        latents, stage_one = self.pairs(batch)
        prompts = self.prompts(batch, latents.device)
        audio = self.audio(batch, latents)
        noise = rng.normal("noise", tuple(latents.shape[1:]))
        audio_noise = rng.normal("audio_noise", tuple(audio.shape[1:]))
        t = self.time_sampler.sample(rng)
        grid = (latents.shape[2], latents.shape[3], latents.shape[4])
        self.rotations.prime(len(latents), grid, audio.shape[1], self.fps, latents.device)
        return self._losses(latents, stage_one, audio, noise, audio_noise, t, prompts.video, prompts.mask)

    def _plain_losses(
        self,
        latents: Tensor,
        stage_one: Tensor,
        audio: Tensor,
        noise: Tensor,
        audio_noise: Tensor,
        t: Tensor,
        context: Tensor,
        mask: Tensor,
    ) -> dict[str, Tensor]:
        state, velocity = bridge(latents, stage_one, noise, t, self.first_sigma)
        moved, heard = self.refiner.velocities(
            pack(state),
            noisy_latents(audio, audio_noise, t),
            t,
            PromptEmbeddings(context, context, mask),
            (latents.shape[2], latents.shape[3], latents.shape[4]),
            self.fps,
        )
        video_loss = velocity_loss(moved, pack(velocity))
        audio_loss = velocity_loss(heard, velocity_target(audio, audio_noise))
        return {"loss": video_loss + self.audio_weight * audio_loss, "video": video_loss, "audio": audio_loss}

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalised latents of the clips and stage-1-like ones, (B, C, T, H, W) each."""
        clean, stage_one = normalised_latents(batch, self.encoder).chunk(2, dim=1)
        return clean, stage_one

    def prompts(self, batch: Batch, device: torch.device) -> PromptEmbeddings:
        """What both streams read of the captions."""
        context, mask = caption_context(batch, self.text_encoder, device)
        return PromptEmbeddings(context, context, mask)

    def audio(self, batch: Batch, latents: Tensor) -> Tensor:
        """(B, L, Ca) clean audio latents of the world.

        Raises:
            ValueError: clips that do not say how their objects move.
        """
        if "motion" not in batch.attributes:
            raise ValueError(
                "these clips do not say how their objects move, which the refiner's audio follows; only "
                "clips of the procedural world tell"
            )
        length, channels = self.refiner.audio_shape(self.as_latents(latents))
        return sound(batch.attributes["motion"].to(latents.device), length, channels)

    def as_latents(self, values: Tensor) -> VideoLatents:
        """Normalised values as what a refiner takes."""
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
        self.rotations.clear()
        device = next(self.model.parameters()).device
        with torch.compiler.set_stance(
            "force_eager"
        ):  # no compiling of blocks for a few clips of other sizes
            return heldout_means(self._judge, heldout, self.num_heldout_clips, device)

    def _judge(self, batch: Batch) -> dict[str, Tensor]:
        values, stage_one = self.pairs(batch)
        truth = self._decode(values)
        before = stage_one_like(truth, self.autoencoder)
        latents = self.as_latents(stage_one)
        rng = SampleRng(0, batch.index)
        noise = rng.normal("refine/video", tuple(values.shape[1:]))
        audio_noise = rng.normal("refine/audio", self.refiner.audio_shape(latents))
        refined = self.refiner.refine(latents, self.prompts(batch, values.device), noise, audio_noise)
        clips = {"before": before, "after": self._decode(refined.values)}
        return compare(clips, truth, self.reader, batch.attributes)

    def _decode(self, values: Tensor) -> Tensor:
        return self.autoencoder.decode(self.autoencoder.denormalise(values)).float()


def compile_blocks(refiner: LTX2Refiner) -> None:
    """Compile the transformer's blocks in place, once for all, as they are of one class."""
    for block in refiner.transformer.transformer_blocks:
        compile_module(block)


def bridge(
    clean: Tensor, stage_one: Tensor, noise: Tensor, t: Tensor, first_sigma: float
) -> tuple[Tensor, Tensor]:
    """(state, velocity) at times (B,) of the way from noised stage-1-like latents to clean ones.

    With ``stage_one`` equal to ``clean`` it is the straight path of ``flow.path``.
    """
    m = expand_time(t.clamp_min(first_sigma), clean)
    start = (1.0 - m) * stage_one + m * noise
    velocity = (start - clean) / m
    return clean + expand_time(t, clean) * velocity, velocity
