"""The refiner's transformer without repeated work: rotations computed once, no mask of ones, compiled blocks.

Results are those of diffusers' own forward up to rounding; no weight and no key is touched.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sana_train.refiners.primed import PrimedRotations
from sana_train.utils.compiling import compile_module

# reference: diffusers' forward as it is, always the truth; compiled: what this file does.
RefinerKernels = Literal["reference", "compiled"]

# Fastest first for tens of thousands of tokens on Hopper; whichever takes the inputs is taken.
_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def without_repeated_work(transformer: Any) -> PrimedRotations:
    """Make an ``LTX2VideoTransformer3DModel`` compile its blocks and take rotations from what is returned.

    Blocks are compiled at the first call of each size; as all are of one class, that is one compilation. At
    1408x2560x81 the tables of the rotations are 1 GB.
    """
    for block in transformer.transformer_blocks:
        compile_module(block)
    return PrimedRotations(transformer)


def attention_kernels(kernels: RefinerKernels) -> AbstractContextManager[Any]:
    """Around a forward pass: which softmax attention it prefers; compiled blocks keep what they traced."""
    return sdpa_kernel(_ATTENTION, set_priority=True) if kernels == "compiled" else nullcontext()


def needed_mask(mask: Tensor) -> Tensor | None:
    """None for a mask that leaves nothing out: softmax attention without one has faster kernels."""
    return None if bool(mask.all()) else mask
