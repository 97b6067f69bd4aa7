"""A hash of a module's weights, independent of device and memory layout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits over named tensors: names, dtypes, shapes and bytes, by sorted name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_hash(module: nn.Module) -> str:
    """Sixteen hex digits over every parameter and persistent buffer, by sorted name."""
    return tensors_hash(module.state_dict())
