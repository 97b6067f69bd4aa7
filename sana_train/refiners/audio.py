"""What the audio stream of an audio-visual refiner is fed when there is no audio.

LTX-2 denoises video and audio together. The paper feeds a zero latent with noise at the scheduler's scale
(section 3.3); its output is discarded. Legend: B batch, L audio latents of time, Ca audio channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

AudioMode = Literal["zero_noised", "zero_clean", "pure_noise", "isolated", "none"]


@dataclass(frozen=True)
class AudioBranch:
    """How one mode runs.

    Attributes:
        noise_share: of the noise in the first state; the rest is a zero latent. None: the first sigma.
        is_clean: told to the network as clean (t = 0) at every step, and never moved.
        is_isolated: no attention between the streams.
    """

    noise_share: float | None
    is_clean: bool = False
    is_isolated: bool = False

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """The first state (B, L, Ca), in the normalised space of the audio latents."""
        return noise * (sigma if self.noise_share is None else self.noise_share)


MODES: dict[AudioMode, AudioBranch] = {
    "zero_noised": AudioBranch(None),  # the paper's
    "zero_clean": AudioBranch(0.0, is_clean=True),
    "pure_noise": AudioBranch(
        1.0
    ),  # what diffusers makes of no audio latents: more noise than its sigma says
    "isolated": AudioBranch(None, is_isolated=True),
    "none": AudioBranch(0.0, is_isolated=True),  # of weights without an audio branch (refiners.video_only)
}


def num_audio_latents(duration_s: float, latents_per_s: float) -> int:
    """L of a clip, as LTX-2 counts: rounded.

    Raises:
        ValueError: a clip too short for one.
    """
    num = round(duration_s * latents_per_s)
    if num < 1:
        raise ValueError(
            f"a clip of {duration_s:.4f} s has no audio latent ({latents_per_s:g} a second); is fps right?"
        )
    return num
