"""By what a block's arithmetic is done: plain PyTorch, a compiler's kernels, or this project's own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch._dynamo.config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sana_train.utils.compiling import compiled_function

# reference: plain PyTorch, the truth. compiled: the same, each block through torch.compile as one graph.
# fused: Triton kernels for all but the matrix products, on a CUDA device in bfloat16 or float16 (autocast, or
# weights in it); elsewhere, that is on a CPU or in float32, the reference. Weights and their names are the
# same in all three, so a run may go on with another.
Kernels = Literal["reference", "compiled", "fused"]

_MAX_SHAPES = 128  # of batches that are compiled for
HAS_TRITON = importlib.util.find_spec("triton") is not None
_HALF = (torch.bfloat16, torch.float16)


def allow_shapes() -> None:
    """A graph for each shape: at 8 torch falls back to eager for good, and buckets may be more."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MAX_SHAPES)


@cache
def compiled(layers: Callable[..., Any]) -> Callable[..., Any]:
    """``layers`` compiled for each shape it meets, without graph breaks."""
    allow_shapes()
    return compiled_function(layers, fullgraph=True)


def fused_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The dtype of fused kernels' matrix products for this input, or None where the reference computes.

    ``TRITON_INTERPRET=1``, Triton's own switch, runs the kernels on a CPU in any dtype, for tests. Tensors
    without numbers, by which a step's memory is counted, count as a GPU's where Triton is installed.
    """
    device = x.device.type
    autocast = torch.is_autocast_enabled(device) if device in ("cuda", "cpu") else False
    dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
    is_counted = not torch.compiler.is_compiling() and isinstance(x, FakeTensor) and HAS_TRITON
    if device == "cuda" or is_counted:
        return dtype if dtype in _HALF else None
    return dtype if device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" else None
