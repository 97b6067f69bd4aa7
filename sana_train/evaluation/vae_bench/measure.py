"""Seconds and memory of autoencoders, taken in turns.

A machine is never quiet for long. So every round visits every autoencoder, and a noisy moment costs
each a pass instead of one all of its passes. Whoever is not on turn waits on the host, so that memory is
that of one autoencoder alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.evaluation.vae_bench.record import PeakMemory
from sana_train.types import VideoShape
from sana_train.utils.rng import SampleRng

_GIB = 2**30


@dataclass
class Passes:
    """One autoencoder's passes in one direction, in order of the rounds."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[PeakMemory] = field(default_factory=list)

    @property
    def peak(self) -> PeakMemory | None:
        """The largest of all rounds; None on a CPU."""
        if not self.peaks:
            return None
        return PeakMemory(
            max(peak.allocated_gib for peak in self.peaks), max(peak.reserved_gib for peak in self.peaks)
        )


@torch.no_grad()
def measure_in_turns(
    autoencoders: Sequence[VideoAutoencoder],
    video: VideoShape,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    seed: int,
    on_turn: Callable[[int], None],
) -> list[tuple[Passes, Passes]]:
    """(encode, decode) of each autoencoder over ``rounds`` random clips of one size, the same for all.

    Args:
        autoencoders: in ``dtype``, on the host; they are there again afterwards.
        on_turn: called with 1 after each of ``rounds * len(autoencoders)`` turns.
    """
    measured = [(Passes(), Passes()) for _ in autoencoders]
    for number in range(rounds):
        for autoencoder, (encodes, decodes) in zip(autoencoders, measured, strict=True):
            autoencoder.to(device)
            clip = random_clip(video, dtype, device, seed, number)
            latents = _measure_pass(lambda m=autoencoder, x=clip: m.encode(x), device, encodes)
            del clip
            _measure_pass(lambda m=autoencoder, z=latents: m.decode(z), device, decodes)
            del latents
            autoencoder.to("cpu")
            torch.cuda.empty_cache()  # the next one's weights in a block of this one's would keep it reserved
            on_turn(1)
    return measured


def random_clip(
    video: VideoShape, dtype: torch.dtype, device: torch.device, seed: int, number: int
) -> Tensor:
    """(1, 3, F, H, W) uniform in [-1, 1]: the ``number``-th clip of ``seed``."""
    rng = SampleRng(seed, torch.tensor([number], device=device))
    return (rng.uniform("vae_bench", (3, video.frames, video.height_px, video.width_px)) * 2 - 1).to(dtype)


def _measure_pass(call: Callable[[], Tensor], device: torch.device, passes: Passes) -> Tensor:
    """An untimed call, which loads kernels and fills the allocator, then a timed one."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    call()
    result, seconds = _timed_on_gpu(call) if on_gpu else _timed_on_cpu(call)
    passes.seconds.append(seconds)
    if on_gpu:
        allocated = torch.cuda.max_memory_allocated(device) / _GIB
        passes.peaks.append(PeakMemory(allocated, torch.cuda.max_memory_reserved(device) / _GIB))
    return result


def _timed_on_gpu(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    result = call()
    end.record()
    end.synchronize()
    return result, start.elapsed_time(end) / 1000


def _timed_on_cpu(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start
