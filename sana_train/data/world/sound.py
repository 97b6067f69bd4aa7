"""What the world sounds like: audio latents that follow how its objects move.

A motion has a voice: a direction in the audio channels, a pitch and an envelope. A clip's audio latents are
the voices of its objects, summed. They stand for the latents of an audio autoencoder, so that a refiner's
audio stream has something to say about the video: which motions are in it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from sana_train.data.world.scene import MOTIONS
from sana_train.utils.rng import SampleRng

_SEED = 0
_PULSED = ("bounce", "orbit")  # their voices come in beats


def sound(motion: Tensor, num_latents: int, num_channels: int, latents_per_s: float = 25.0) -> Tensor:
    """(B, K) motion classes, -1 = no such object -> (B, num_latents, num_channels) of about unit variance.

    Without objects it is silence: zeros.
    """
    voices = _voices(num_latents, num_channels, latents_per_s, motion.device)
    one_hot = torch.nn.functional.one_hot(motion.clamp_min(0), len(MOTIONS)).float()
    counts = (one_hot * (motion >= 0)[..., None]).sum(1)  # (B, M)
    total = counts.sum(1).clamp_min(1.0).sqrt()
    return torch.einsum("bm,mlc->blc", counts, voices) / total[:, None, None]


@lru_cache(maxsize=8)  # kept: a table from the CPU would make every training step wait for the GPU
def _voices(num_latents: int, num_channels: int, latents_per_s: float, device: torch.device) -> Tensor:
    """(M, num_latents, num_channels), of each motion."""
    with torch.inference_mode(False):  # or training could not use what an evaluation made
        directions = SampleRng(_SEED, torch.arange(len(MOTIONS), device=device)).normal(
            "voice", (num_channels,)
        )
        time_s = torch.arange(num_latents, device=device) / latents_per_s
        pitch_hz = 1.0 + torch.arange(len(MOTIONS), device=device) * 0.5  # latents hold 12.5 Hz
        waves = math.sqrt(2.0) * torch.sin(2 * math.pi * pitch_hz[:, None] * time_s)  # (M, L)
        beats = torch.tensor([any(name.startswith(p) for p in _PULSED) for name in MOTIONS], device=device)
        envelope = torch.where(beats[:, None], (torch.sin(2 * math.pi * 2.0 * time_s) > 0).float(), 1.0)
        return (waves * envelope)[:, :, None] * directions[:, None, :]
