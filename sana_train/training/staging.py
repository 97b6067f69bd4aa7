"""A copy of a rank's shards in the memory of its CPU, which is taken once and kept.

What a GPU copies into is locked in memory, so that it comes at the speed of the bus; locking takes longer
than copying. torch has a ``DefaultStager`` for this, but before torch 2.13 it serves once: it closes itself
after the first copy, and the second ends in a KeyError. Each time it also copies the mesh and the placements
of every tensor, which are only looked at here.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sana_train.utils.shards import local

State = Mapping[str, Mapping[str, Tensor]]  # tensors by part and name
_PAGE_BYTES = 4096  # the least that is worth locking
_PORTABLE = 1  # cudaHostRegisterPortable


class StagingMemory:
    """Room for one copy of a state: every copy is written over the one before."""

    def __init__(self) -> None:
        self._copies: dict[tuple[str, str], Tensor] = {}
        self._locked: list[int] = []  # addresses
        # Given back before it is unlocked, memory could not be locked again by whoever is given it. At the
        # process's end CUDA may be gone, and its memory goes anyway.
        weakref.finalize(self, _unlock, self._locked).atexit = False

    @torch.no_grad()
    def stage(self, state: State) -> dict[str, dict[str, Tensor]]:
        """The values that ``state`` has now.

        Args:
            state: sharded tensors or whole ones, of any device; of later calls others may be there and some
                missing, but each in the shape that it had.

        Returns:
            The same on the CPU, sharded in the same way. It holds until the next call.

        Raises:
            RuntimeError: memory could not be locked.
        """
        staged = {
            part: {name: self._copied((part, name), value) for name, value in tensors.items()}
            for part, tensors in state.items()
        }
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # a GPU copies while the next tensor is looked at
        return staged

    def _copied(self, key: tuple[str, str], value: Tensor) -> Tensor:
        copied = self._copies.get(key)
        if copied is None:
            copied = self._copies[key] = torch.empty_like(value, device="cpu")
            memory = local(copied)
            if local(value).is_cuda and memory.nbytes >= _PAGE_BYTES:
                _lock(memory)
                self._locked.append(memory.data_ptr())
        assert (copied.shape, copied.dtype) == (value.shape, value.dtype), key
        local(copied).copy_(local(value), non_blocking=True)
        return copied


def _lock(memory: Tensor) -> None:
    # Not `pin_memory`, which rounds each size up to a power of two.
    error = int(_runtime().cudaHostRegister(memory.data_ptr(), memory.nbytes, _PORTABLE))
    if error:
        raise RuntimeError(
            f"{memory.nbytes / 2**20:.2f} MiB of this machine's memory could not be locked for a checkpoint "
            f"(CUDA error {error}). Every rank keeps a copy of its shards there: give the job more memory, "
            "or spread the model over more ranks"
        )


def _unlock(addresses: list[int]) -> None:
    for address in addresses:
        _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    return torch.cuda.cudart()
