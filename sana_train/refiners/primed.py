"""Rotary tables of one size, made once: before a compiled step instead of in it, and for all steps of a walk.

diffusers makes them anew in every forward, with constants on the CPU, beside which no step can become a CUDA
graph. Legend: B clips, T/H/W latent grid, L audio tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_NAMES = ("rope", "audio_rope", "cross_attn_rope", "cross_attn_audio_rope")


class PrimedRotation(nn.Module):
    """A rotary embedding of diffusers that gives ``tables`` where it has some."""

    def __init__(self, rotation: Any) -> None:
        super().__init__()
        self.rotation = rotation
        self.tables: tuple[Tensor, Tensor] | None = None

    # Where there are tables no coordinate is read, but diffusers makes and slices them all the same, out of
    # constants on the CPU: it may slice a table.

    def prepare_video_coords(self, *given: Any, **named: Any) -> Tensor:
        return self.rotation.prepare_video_coords(*given, **named) if self.tables is None else self.tables[0]

    def prepare_audio_coords(self, *given: Any, **named: Any) -> Tensor:
        return self.rotation.prepare_audio_coords(*given, **named) if self.tables is None else self.tables[0]

    def forward(self, coords: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        return self.rotation(coords, device=device) if self.tables is None else self.tables


class PrimedRotations:
    """The four of an ``LTX2VideoTransformer3DModel``, exchanged in place.

    Between ``prime`` and ``clear`` the transformer must get no other size.
    """

    def __init__(self, transformer: Any) -> None:
        self._names = [name for name in _NAMES if hasattr(transformer, name)]  # of video alone there is one
        for name in self._names:
            setattr(transformer, name, PrimedRotation(getattr(transformer, name)))
        self.transformer = transformer
        self._size: tuple[Any, ...] | None = None

    @torch.no_grad()
    def prime(
        self, num_clips: int, grid: tuple[int, int, int], num_audio: int, fps: float, device: torch.device
    ) -> None:
        """Make the tables of B clips of a grid (T, H, W) and L audio tokens, unless they are there."""
        size = (num_clips, grid, num_audio, fps, device)
        if size == self._size:
            return
        self.clear()
        network = self.transformer
        video = network.rope.prepare_video_coords(num_clips, *grid, device, fps=fps)
        coordinates = {"rope": video, "cross_attn_rope": video[:, 0:1]}
        if "audio_rope" in self._names:
            audio = network.audio_rope.prepare_audio_coords(num_clips, num_audio, device)
            coordinates |= {"audio_rope": audio, "cross_attn_audio_rope": audio[:, 0:1]}
        for name in self._names:
            rotation, coords = getattr(network, name), coordinates[name]
            cosines, sines = rotation(coords, device=device)
            rotation.tables = (cosines.contiguous(), sines.contiguous())
        self._size = size

    def clear(self) -> None:
        """Back to tables made at every forward."""
        for name in self._names:
            getattr(self.transformer, name).tables = None
        self._size = None
