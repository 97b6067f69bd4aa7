"""Stage 2: the step-distilled LTX-2 transformer refines stage-1 latents (paper, section 3.2).

Normalised latents of the LTX-2 VAE are noised to the first sigma, and an Euler walk of a few evaluations
brings them back, every guidance off. The transformer is diffusers' ``LTX2VideoTransformer3DModel``; the
loop is ours and equals ``LTX2Pipeline`` called with packed latents (``tests/refiners/test_ltx2.py``).

Legend: B clips, C channels, T/H/W latent grid, N = T*H*W video tokens, L audio tokens, Ca audio channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from sana_train.autoencoders.diffusers_io import load_diffusers
from sana_train.autoencoders.weights import without_values
from sana_train.flow.samplers import Euler, Progress
from sana_train.flow.schedules import CustomSigmas
from sana_train.refiners.audio import MODES, AudioMode, num_audio_latents
from sana_train.refiners.compiled import (
    RefinerKernels,
    attention_kernels,
    needed_mask,
    without_repeated_work,
)
from sana_train.refiners.lora import fuse_lora_
from sana_train.refiners.video_only import load_video, remove_audio, video_velocity
from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.types import LatentSpec, VideoLatents

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_REMEDY = "give a copy of the hub repository Lightricks/LTX-2 with its folder `transformer`"


class LTX2Refiner(nn.Module):
    """A frozen LTX-2 transformer and the schedule it was distilled to.

    Args:
        sigmas: number of evaluations -> times, first the one that latents are noised to, last 0.
        num_evaluations: which of these.
        audio: what the audio stream is fed (``refiners.audio``).
        latent_channels, stride_t, stride_px: of the latent space; positions are in pixels and seconds.
        num_layers, num_heads, head_dim: of the video stream; ``cross_attention_dim`` is their product.
        audio_channels, audio_num_heads, audio_head_dim: of the audio stream.
        caption_channels: width of the prompts, both streams.
        base_size_px: height and width that spatial positions are relative to.
        dtype: of the weights; the walk itself is in float32.
        weights: a diffusers folder or hub id with a ``transformer`` subfolder; None for random weights. With
            ``audio`` none, one whose weights have no audio branch, or whose audio branch is not to be read.
        lora: a LoRA file that is added to the weights, such as the distilled one; None with merged weights.
        lora_strength: its factor.
        kernels: ``reference``, or ``compiled`` (``refiners.compiled``), minutes at the first call.
    """

    def __init__(
        self,
        sigmas: dict[int, list[float]],
        num_evaluations: int = 3,
        audio: AudioMode = "zero_noised",
        latent_channels: int = 128,
        stride_t: int = 8,
        stride_px: int = 32,
        num_layers: int = 48,
        num_heads: int = 32,
        head_dim: int = 128,
        audio_channels: int = 128,
        audio_num_heads: int = 32,
        audio_head_dim: int = 64,
        caption_channels: int = 3840,
        base_size_px: int = 2048,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        weights: str | None = None,
        lora: str | None = None,
        lora_strength: float = 1.0,
        kernels: RefinerKernels = "reference",
    ) -> None:
        super().__init__()
        from diffusers import LTX2VideoTransformer3DModel  # an import of seconds

        if num_evaluations not in sigmas:
            raise ValueError(
                f"num_evaluations={num_evaluations}, refiner.sigmas has lists for {sorted(sigmas)}; add one"
            )
        for num, values in sigmas.items():
            if len(values) != num + 1 or values[-1] != 0.0:
                raise ValueError(
                    f"refiner.sigmas.{num} is {list(values)}; expected {num + 1} times that end at 0: an "
                    "evaluation is a step from one to the next"
                )
        self.schedule = CustomSigmas(list(sigmas[num_evaluations]))
        self.audio: AudioMode = audio
        self.spec = LatentSpec(latent_channels, stride_t, stride_px, stride_px, "causal")
        with without_values(weights is not None):
            transformer: Any = LTX2VideoTransformer3DModel(
                in_channels=latent_channels,
                out_channels=latent_channels,
                num_attention_heads=num_heads,
                attention_head_dim=head_dim,
                cross_attention_dim=num_heads * head_dim,
                vae_scale_factors=(stride_t, stride_px, stride_px),
                base_height=base_size_px,
                base_width=base_size_px,
                audio_in_channels=audio_channels,
                audio_out_channels=audio_channels,
                audio_num_attention_heads=audio_num_heads,
                audio_attention_head_dim=audio_head_dim,
                audio_cross_attention_dim=audio_num_heads * audio_head_dim,
                num_layers=num_layers,
                caption_channels=caption_channels,
                rope_type="split",  # as released; the class's own default is another
            )
        if audio == "none":
            remove_audio(transformer)
        if weights is not None and audio == "none":
            load_video(transformer, weights)
        elif weights is not None:
            transformer = load_diffusers(
                transformer, weights, _REMEDY, part="transformer", dtype=_DTYPES[dtype]
            )
        # diffusers' own `to` warns of modules to keep in float32, of which this class has none.
        self.transformer: Any = nn.Module.to(transformer, _DTYPES[dtype])
        if lora is not None:
            fuse_lora_(self.transformer, Path(lora), lora_strength)
        self.kernels: RefinerKernels = kernels
        self._rotations = without_repeated_work(self.transformer) if kernels == "compiled" else None
        self.requires_grad_(False).eval()

    def audio_shape(self, latents: VideoLatents) -> tuple[int, int]:
        """(L, Ca) of the audio latents beside ``latents``."""
        frames = self.spec.video_shape(*latents.values.shape[2:]).frames
        config = self.transformer.config
        per_s = config.audio_sampling_rate / config.audio_hop_length / config.audio_scale_factor
        return num_audio_latents(frames / latents.fps, per_s), config.audio_in_channels

    @torch.no_grad()
    def refine(
        self,
        latents: VideoLatents,
        prompts: PromptEmbeddings,
        video_noise: Tensor,
        audio_noise: Tensor,
        *,
        from_noise: bool = False,
        progress: Progress | None = None,
    ) -> VideoLatents:
        """Refined latents, normalised, in the space and dtype of ``latents``.

        Args:
            prompts: of the B clips, as ``text.ltx2_connectors`` encodes them.
            video_noise: (B, C, T, H, W) unit normal.
            audio_noise: (B, L, Ca) unit normal, see ``audio_shape``.
            from_noise: a control (paper, section 3.2): ``video_noise`` itself in the place of the noised
                latents, of which only the size is read.

        Raises:
            ValueError: raw or not finite latents, or shapes that do not belong together.
        """
        times = self.schedule.sigmas().tolist()
        self._check(latents, prompts, video_noise, audio_noise)
        branch = MODES[self.audio]
        values = latents.values.to(torch.float32)
        share = 1.0 if from_noise else times[0]
        video = pack((1.0 - share) * values + share * video_noise.to(values))
        audio = branch.start(audio_noise.to(values), times[0])
        sizes, num_video = (video.shape, audio.shape), video[0].numel()

        def velocity(state: Tensor, t: Tensor) -> Tensor:
            """Both streams in one state (B, N*C + L*Ca), as they share every time."""
            tokens = [part.view(size) for part, size in zip(_split(state, num_video), sizes, strict=True)]
            grid = (values.shape[2], values.shape[3], values.shape[4])
            moved, heard = self.velocities(tokens[0], tokens[1], t, prompts, grid, latents.fps)
            still = torch.zeros_like(heard) if branch.is_clean else heard
            return torch.cat([moved.flatten(1), still.flatten(1)], dim=1)

        start = torch.cat([video.flatten(1), audio.flatten(1)], dim=1)
        end = Euler().sample(velocity, start, times, progress)
        refined = _unpack(_split(end, num_video)[0].view(sizes[0]), values.shape)
        return VideoLatents(refined.to(latents.values.dtype), latents.space, True, latents.fps)

    def velocities(
        self,
        video: Tensor,
        audio: Tensor,
        t: Tensor,
        prompts: PromptEmbeddings,
        grid: tuple[int, int, int],
        fps: float,
    ) -> tuple[Tensor, Tensor]:
        """One evaluation: noisy tokens (B, N, C), (B, L, Ca) at times (B,) -> their velocities in float32."""
        branch = MODES[self.audio]
        dtype = self.transformer.dtype
        timestep = t * self.transformer.config.timestep_scale_multiplier  # (B,), of 0..1000
        audio_timestep = torch.zeros_like(timestep) if branch.is_clean else timestep
        mask = prompts.mask
        if self._rotations is not None:
            mask = needed_mask(mask)
            self._rotations.prime(len(video), grid, audio.shape[1], fps, video.device)
        mask = None if mask is None else mask.to(video.device)
        if self.audio == "none":
            context = prompts.video.to(video.device, dtype)
            moved = video_velocity(self.transformer, video.to(dtype), timestep, context, mask, grid, fps)
            return moved.float(), torch.zeros_like(audio, dtype=torch.float32)
        num_frames, height, width = grid
        with attention_kernels(self.kernels):
            moved, heard = self.transformer(
                hidden_states=video.to(dtype),
                audio_hidden_states=audio.to(dtype),
                encoder_hidden_states=prompts.video.to(video.device, dtype),
                audio_encoder_hidden_states=prompts.audio.to(video.device, dtype),
                timestep=timestep,
                audio_timestep=audio_timestep,
                sigma=timestep,
                audio_sigma=audio_timestep,
                encoder_attention_mask=mask,
                audio_encoder_attention_mask=mask,
                num_frames=num_frames,
                height=height,
                width=width,
                fps=fps,
                audio_num_frames=audio.shape[1],
                isolate_modalities=branch.is_isolated,
                return_dict=False,
            )
        return moved.float(), heard.float()

    def _check(
        self, latents: VideoLatents, prompts: PromptEmbeddings, video_noise: Tensor, audio_noise: Tensor
    ) -> None:
        values = latents.values
        if not latents.is_normalised:
            raise ValueError(
                "the refiner got raw latents; expected normalised ones: autoencoder.normalise(...)"
            )
        if values.ndim != 5 or values.shape[1] != self.spec.channels:
            raise ValueError(
                f"latents are {tuple(values.shape)}, the refiner reads (B, {self.spec.channels}, T, H, W): "
                "are they of another autoencoder?"
            )
        if not torch.isfinite(values).all():
            bad = (~torch.isfinite(values)).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"latents of clips {bad} are not finite; look at stage 1's samples")
        wanted = {
            "video_noise": (tuple(video_noise.shape), tuple(values.shape)),
            "audio_noise": (tuple(audio_noise.shape), (len(values), *self.audio_shape(latents))),
        }
        width = self.transformer.config.caption_channels
        for name, stream in (("prompts.video", prompts.video), ("prompts.audio", prompts.audio)):
            wanted[name] = (tuple(stream.shape), (len(values), prompts.mask.shape[-1], width))
        for name, (given, expected) in wanted.items():
            if given != expected:
                raise ValueError(
                    f"{name} is {given}, expected {expected} beside latents {tuple(values.shape)}"
                )


def pack(values: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B, N, C)."""
    return rearrange(values, "b c t h w -> b (t h w) c")


def _unpack(tokens: Tensor, shape: torch.Size) -> Tensor:
    return rearrange(tokens, "b (t h w) c -> b c t h w", t=shape[2], h=shape[3], w=shape[4])


def _split(state: Tensor, num_video: int) -> tuple[Tensor, Tensor]:
    return state[:, :num_video], state[:, num_video:]
