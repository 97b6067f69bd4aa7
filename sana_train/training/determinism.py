"""Kernels that give the same bits each time, for runs on a GPU whose resume is to be exact to the bit."""

from __future__ import annotations

import os

import torch


def set_determinism(is_wanted: bool) -> None:
    """Let torch, cuBLAS and cuDNN use only kernels that sum in a fixed order; call it before CUDA is used.

    What has no such kernel raises torch's ``RuntimeError``, which names it, when it runs.
    """
    if is_wanted:
        # Read once, when cuBLAS gets its first handle: 8 workspaces of 4 MiB for each handle and stream.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_wanted)  # a sweep's next job may not want it
    torch.backends.cudnn.deterministic = is_wanted
