"""Which clips make up a step: a pure function of (seed, step), the same on any machine.

The run draws an endless stream of samples; sample number ``ordinal`` is slot ``ordinal - step *
global_batch`` of its step. The stream is cut into epochs of ``num_clips`` samples, each a
permutation of all clips made by a keyed bijection (a Feistel network with cycle walking), so nothing
is stored, nothing depends on a library's shuffling, and any point of the stream costs the same.

``FullShuffle`` permutes all clips at once. ``WindowShuffle`` keeps to a few shards at a time, for shards
that are far away or larger than memory: it permutes the shards, then the clips of each window of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sana_train.utils.rng import hash64, stream_key

_NUM_ROUNDS = 6


def _permute_once(values: Tensor, keys: Tensor, half_bits: Tensor) -> Tensor:
    """A bijection of [0, 4**half_bits) for each of B values, keyed by (rounds, B)."""
    mask = (1 << half_bits) - 1
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (hash64(right, key) & mask)
    return (left << half_bits) | right


def _half_bits(size: int) -> int:
    return max(1, ((size - 1).bit_length() + 1) // 2)


def _permute(values: Tensor, sizes: Tensor, half_bits: Tensor, keys: Tensor) -> Tensor:
    """Values (B,), each of [0, size), to another of the same range: for equal keys (B,) a permutation."""
    keys = torch.stack([hash64(keys, round_id) for round_id in range(_NUM_ROUNDS)])  # (rounds, B)
    values = _permute_once(values, keys, half_bits)
    outside = (values >= sizes).nonzero().flatten()
    while len(outside):  # 4 tries on average at most; the last samples of many take dozens
        walked = _permute_once(values[outside], keys[:, outside], half_bits[outside])
        values[outside] = walked
        outside = outside[walked >= sizes[outside]]
    return values


def clip_indices(seed: int, ordinals: Tensor, num_clips: int) -> Tensor:
    """Clip ids (B,) int64 of the samples ``ordinals`` (B,) int64 of a run's stream.

    Thousands of samples take little longer than a few, so ask for many at once.

    Raises:
        ValueError: there are no clips.
    """
    if num_clips < 1:
        raise ValueError(f"a stream of clips needs at least one clip, got num_clips={num_clips}")
    epoch = torch.div(ordinals, num_clips, rounding_mode="floor")
    keys = hash64(epoch, stream_key(seed, "data/order"))
    half_bits = torch.tensor(_half_bits(num_clips)).expand_as(ordinals)
    sizes = torch.tensor(num_clips).expand_as(ordinals)
    return _permute(ordinals - epoch * num_clips, sizes, half_bits, keys)


class Order(Protocol):
    """Which clips a stream of samples holds."""

    def __call__(self, ordinals: Tensor) -> Tensor:
        """Clip ids (B,) int64 of the samples ``ordinals`` (B,) int64; ask for many at once."""
        ...


@dataclass(frozen=True)
class FullShuffle:
    """Each epoch a permutation of all clips."""

    seed: int
    num_clips: int

    def __call__(self, ordinals: Tensor) -> Tensor:
        return clip_indices(self.seed, ordinals, self.num_clips)


class _Epoch(NamedTuple):
    """One epoch's shards in their order: places and clips count from the epoch's start.

    Attributes:
        shards: (S,) the shard at each place.
        starts: (S,) samples before it.
        window_starts: (W,) samples before each window.
        window_sizes: (W,) samples in it.
        half_bits: (W,) of the permutation within it.
        key: of these permutations.
    """

    shards: Tensor
    starts: Tensor
    window_starts: Tensor
    window_sizes: Tensor
    half_bits: Tensor
    key: Tensor


class WindowShuffle:
    """Each epoch the shards in a new order, then the clips of every ``window`` consecutive shards permuted.

    So at any time only the shards of one window are read, two where a step lies across the border.

    Args:
        seed: of the run.
        shards: the clip ids of each shard, without gaps, from 0.
        window: shards whose clips are mixed.

    Raises:
        ValueError: no shards, or a window of none.
    """

    def __init__(self, seed: int, shards: Sequence[range], window: int) -> None:
        shards = [shard for shard in shards if len(shard)]
        if not shards:
            raise ValueError("a stream of clips needs at least one shard with clips, got none")
        if window < 1:
            raise ValueError(f"clips are mixed over at least 1 shard at a time, got a window of {window}")
        assert [shard.start for shard in shards[1:]] == [shard.stop for shard in shards[:-1]]
        self.seed, self.window = seed, window
        self.num_clips = shards[-1].stop
        self._first_clips = torch.tensor([shard.start for shard in shards])
        self._sizes = torch.tensor([len(shard) for shard in shards])
        self._epoch = lru_cache(2)(self._lay_out)  # what it returns follows from its argument alone

    def __call__(self, ordinals: Tensor) -> Tensor:
        epochs = torch.div(ordinals, self.num_clips, rounding_mode="floor")
        clips = torch.empty_like(ordinals)
        for epoch in epochs.unique().tolist():
            mine = epochs == epoch
            clips[mine] = self._of_epoch(self._epoch(epoch), ordinals[mine] - epoch * self.num_clips)
        return clips

    def _of_epoch(self, epoch: _Epoch, places: Tensor) -> Tensor:
        window = torch.searchsorted(epoch.window_starts, places, right=True) - 1
        start = epoch.window_starts[window]
        keys = hash64(window, epoch.key)
        moved = start + _permute(places - start, epoch.window_sizes[window], epoch.half_bits[window], keys)
        at = torch.searchsorted(epoch.starts, moved, right=True) - 1
        return self._first_clips[epoch.shards[at]] + moved - epoch.starts[at]

    def _lay_out(self, epoch: int) -> _Epoch:
        num_shards = len(self._sizes)
        key = hash64(torch.tensor(epoch), stream_key(self.seed, "data/order/shards"))
        shards = _permute(
            torch.arange(num_shards),
            torch.tensor(num_shards).expand(num_shards),
            torch.tensor(_half_bits(num_shards)).expand(num_shards),
            key.expand(num_shards),
        )
        sizes = self._sizes[shards]
        starts = sizes.cumsum(0) - sizes
        window_starts = starts[:: self.window].contiguous()
        ends = torch.cat([window_starts[1:], torch.tensor([self.num_clips])])
        window_sizes = ends - window_starts
        half_bits = torch.tensor([_half_bits(size) for size in window_sizes.tolist()])
        return _Epoch(shards, starts, window_starts, window_sizes, half_bits, hash64(key, 1))

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch = lru_cache(2)(self._lay_out)


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
