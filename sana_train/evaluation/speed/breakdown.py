"""Where a step's time goes on a GPU: its kernels by kind, from torch's profiler."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# The first that is found in a kernel's name counts.
_KINDS = (
    ("compiled", r"^triton_"),  # first: their names tell the operators that they are made of
    ("attention", r"flash|fmha|sdpa|attention|^_linear_|^_cross_"),
    ("convolution", r"conv|dgrad|wgrad"),
    ("norms and gates", r"^_(norm|rms|gate)_"),
    ("matrix product", r"gemm|nvjet|cutlass|cublas|xmma|gemv|splitk"),
    ("optimiser", r"multi_tensor|adam"),
    ("copy", r"memcpy|memset|copy|^_gather_"),
    ("reduction", r"reduce|norm"),
    ("elementwise", r"elementwise|vectorized"),
)


def kind_of(kernel: str) -> str:
    """The kind of a CUDA kernel by its name; ``other`` for what no pattern knows."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, kernel, re.IGNORECASE)), "other")


def breakdown(step: Callable[[], object], num_longest: int = 60) -> dict[str, Any]:
    """Milliseconds of one step by kind, and its longest kernels; two steps run before it.

    Returns:
        ``by_kind_ms``, ``longest`` (name, kind, number of calls, ms) and ``kernels_ms``, their sum: what is
        missing to a step's time is the device waiting for the host.
    """
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        step()
        torch.cuda.synchronize()
    ms: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in recorded.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            ms[event.name] += event.time_range.elapsed_us() / 1e3
            calls[event.name] += 1
    by_kind: dict[str, float] = defaultdict(float)
    for name, value in ms.items():
        by_kind[kind_of(name)] += value
    longest = sorted(ms, key=lambda name: -ms[name])[:num_longest]
    return {
        "kernels_ms": sum(ms.values()),
        "by_kind_ms": dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        "longest": [
            {"name": name[:120], "kind": kind_of(name), "calls": calls[name], "ms": ms[name]}
            for name in longest
        ],
    }
