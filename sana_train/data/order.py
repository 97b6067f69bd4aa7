"""Which clips make up a step: a pure function of (seed, step), the same on any machine.

The run draws an endless stream of samples; sample number ``ordinal`` is slot ``ordinal - step *
global_batch`` of its step. The stream is cut into epochs of ``num_clips`` samples, each a
permutation of all clips made by a keyed bijection (a Feistel network with cycle walking), so nothing
is stored, nothing depends on a library's shuffling, and any point of the stream costs the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sana_train.utils.rng import hash64, stream_key

_NUM_ROUNDS = 6


def _permute_once(values: Tensor, keys: Tensor, half_bits: int) -> Tensor:
    """A bijection of [0, 4**half_bits) keyed by (rounds, B)."""
    mask = (1 << half_bits) - 1
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (hash64(right, key) & mask)
    return (left << half_bits) | right


def clip_indices(seed: int, ordinals: Tensor, num_clips: int) -> Tensor:
    """Clip ids (B,) int64 of the samples ``ordinals`` (B,) int64 of a run's stream.

    Thousands of samples take little longer than a few, so ask for many at once.

    Raises:
        ValueError: there are no clips.
    """
    if num_clips < 1:
        raise ValueError(f"a stream of clips needs at least one clip, got num_clips={num_clips}")
    half_bits = max(1, ((num_clips - 1).bit_length() + 1) // 2)
    epoch = torch.div(ordinals, num_clips, rounding_mode="floor")
    keys = hash64(epoch, stream_key(seed, "data/order"))
    keys = torch.stack([hash64(keys, round_id) for round_id in range(_NUM_ROUNDS)])  # (rounds, B)
    values = _permute_once(ordinals - epoch * num_clips, keys, half_bits)
    outside = (values >= num_clips).nonzero().flatten()
    while len(outside):  # 4 tries on average at most; the last samples of many take dozens
        values[outside] = walked = _permute_once(values[outside], keys[:, outside], half_bits)
        outside = outside[walked >= num_clips]
    return values


def step_ordinals(step: int, global_batch: int) -> Tensor:
    """(global_batch,) int64: samples drawn before ``step`` + slot."""
    return torch.arange(step * global_batch, (step + 1) * global_batch, dtype=torch.int64)


def batch_indices(seed: int, step: int, num_clips: int, global_batch: int) -> Tensor:
    """(global_batch,) int64 clip ids of optimiser step ``step``, in slot order."""
    return clip_indices(seed, step_ordinals(step, global_batch), num_clips)


@dataclass(frozen=True)
class BatchSplit:
    """How a global batch is cut: into accumulation rounds, each round into ranks.

    Args:
        global_batch: clips per optimiser step, over all ranks and rounds.
        micro_batch: clips per rank and round.
        world_size: data-parallel ranks.
        rank: this rank.
    """

    global_batch: int
    micro_batch: int
    world_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        for name in ("global_batch", "micro_batch", "world_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not one of {self.world_size} ranks")
        if self.global_batch % (self.micro_batch * self.world_size):
            raise ValueError(
                f"a global batch of {self.global_batch} clips does not divide into micro-batches of "
                f"{self.micro_batch} on {self.world_size} ranks; the product of the last two must "
                "divide the first"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step on each rank."""
        return self.global_batch // (self.micro_batch * self.world_size)

    def ordinals(self, micro_step: int) -> Tensor:
        """(micro_batch,) int64 ordinals of this rank's ``micro_step``-th micro-batch since step 0."""
        step, part = divmod(micro_step, self.accumulation)
        start = step * self.global_batch + (part * self.world_size + self.rank) * self.micro_batch
        return torch.arange(start, start + self.micro_batch, dtype=torch.int64)
