"""The refiner's transformer without repeated work: rotations computed once, no mask of ones, compiled blocks.

Results are those of diffusers' own forward up to rounding; no weight and no key is touched.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# reference: diffusers' forward as it is, always the truth; compiled: what this file does.
RefinerKernels = Literal["reference", "compiled"]

# Fastest first for tens of thousands of tokens on Hopper; whichever takes the inputs is taken.
_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_ROTATIONS = ("rope", "audio_rope", "cross_attn_rope", "cross_attn_audio_rope")


class KeptRotations(nn.Module):
    """A rotary embedding of diffusers that keeps the tables of the coordinates it was last given.

    All evaluations of a walk have the same coordinates. They are compared by value, so another grid or frame
    rate makes new tables. At 1408x2560x81 the four of a transformer keep 1 GB between walks.
    """

    def __init__(self, rotation: Any) -> None:
        super().__init__()
        self.rotation = rotation
        self._coordinates: Tensor | None = None
        self._tables: tuple[Tensor, Tensor] | None = None

    def prepare_video_coords(self, *given: Any, **named: Any) -> Tensor:
        return self.rotation.prepare_video_coords(*given, **named)

    def prepare_audio_coords(self, *given: Any, **named: Any) -> Tensor:
        return self.rotation.prepare_audio_coords(*given, **named)

    def forward(self, coords: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Coordinates (B, axes, N, 2) -> cosines and sines, on the device of ``coords``."""
        kept = self._coordinates
        if (
            self._tables is None
            or kept is None
            or kept.device != coords.device
            or not torch.equal(kept, coords)
        ):
            with torch.no_grad():
                self._tables = self.rotation(coords, device=device)
            self._coordinates = coords.clone()  # not a view: of those somebody may change the base
        assert self._tables is not None
        return self._tables


def without_repeated_work(transformer: Any) -> None:
    """Make an ``LTX2VideoTransformer3DModel`` keep its rotations and compile its blocks, in place.

    Blocks are compiled at the first call of each size; as all are of one class, that is one compilation.
    """
    for name in _ROTATIONS:
        setattr(transformer, name, KeptRotations(getattr(transformer, name)))
    for block in transformer.transformer_blocks:
        block.compile(dynamic=False)


def attention_kernels(kernels: RefinerKernels) -> AbstractContextManager[Any]:
    """Around a forward pass: which softmax attention it prefers; compiled blocks keep what they traced."""
    return sdpa_kernel(_ATTENTION, set_priority=True) if kernels == "compiled" else nullcontext()


def needed_mask(mask: Tensor) -> Tensor | None:
    """None for a mask that leaves nothing out: softmax attention without one has faster kernels."""
    return None if bool(mask.all()) else mask
