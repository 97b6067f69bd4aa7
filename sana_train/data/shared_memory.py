"""Tensors that a loader worker hands on without copying them once more."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


def batch_zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros to fill with a batch; in a loader worker they lie in memory that the main process can read.

    Any other tensor is copied there when its batch is sent, which for latents takes as long as reading them.
    """
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=dtype)
    empty = torch.empty(0, dtype=dtype)
    num_bytes = empty.element_size() * torch.Size(shape).numel()
    # As torch's own default_collate does; a new file of shared memory is zeros.
    storage = torch.UntypedStorage._new_shared(num_bytes)
    return empty.set_(storage, 0, shape)  # type: ignore[call-overload] - torch's stubs lack sizes alone
