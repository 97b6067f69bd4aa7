"""Hashes of weights, independent of device and memory layout, and of plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

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


def json_hash(value: Any) -> str:
    """Sixteen hex digits over what ``value`` is in JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def weights_hash(module: nn.Module) -> str:
    """Sixteen hex digits over every parameter and persistent buffer, by sorted name."""
    return tensors_hash(module.state_dict())
