"""Tensors of which each process holds a part, filled from whole ones without talking to other processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``: all of it unless it is sharded. Shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def write_part(target: Tensor, whole: Tensor) -> None:
    """``target.copy_(whole)``, of a sharded target this process's part; of ``whole`` only that is read.

    Raises:
        ValueError: the shapes differ.
    """
    if target.shape != whole.shape:
        raise ValueError(
            f"{tuple(whole.shape)} given for a tensor of {tuple(target.shape)}; they must be the same"
        )
    if not isinstance(target, DTensor):
        target.copy_(whole)
        return
    sizes, offsets = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    for dim, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        whole = whole.narrow(dim, min(offset, whole.shape[dim]), size)
    target.to_local().copy_(whole)


def gathered(tensor: Tensor) -> Tensor:
    """All of ``tensor`` on every process; if it is sharded, each must ask for it at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
