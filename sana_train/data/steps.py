"""Which clips a micro-batch holds, for clips of one size and for clips in buckets.

Clips of one size: a step is the next ``global_batch`` samples of the run's stream.

Buckets: a step is of one bucket on all ranks, so no rank waits for another one's larger clips and the
network sees one shape a step. ``global_batch`` and ``micro_batch`` count clips of the largest bucket; its
micro-batch in latent tokens is the budget, and of a bucket of smaller clips as many go into a micro-batch as
the budget holds. A loss is the mean over a step's clips, so within a step all clips weigh the same, and from
step to step all tokens do, about. A bucket's share of steps is its clips over its clips a step, so every clip
of the set is seen equally often; each bucket goes through epochs of its own.

Buckets take turns by ``data/interleave.py``: what step n holds is a pure function of (seed, n), whatever
ranks and workers. It does depend on ``micro_batch``, which is therefore part of a bucketed run's identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sana_train.data.buckets import Bucket, BucketClips
from sana_train.data.interleave import Interleave
from sana_train.data.mixture import MixtureClips, MixtureOrder
from sana_train.data.order import BatchSplit, FullShuffle, Order, WindowShuffle
from sana_train.protocols import ClipSource
from sana_train.utils.rng import stream_key

# A part of a micro-batch's samples: ordinals and clip ids, (B,) int64 each.
Drawn = tuple[Tensor, Tensor]


@runtime_checkable
class HasShards(Protocol):
    """A source that knows which of its clips lie together."""

    def shards(self) -> list[range]: ...


class Steps(Protocol):
    """What every micro-batch of one rank holds."""

    accumulation: int  # micro-batches per optimiser step
    micro_batch: int  # clips in one at most

    def micro_batches(self, micro_steps: Sequence[int]) -> list[Drawn]:
        """Ordinals and clip ids of these micro-batches since step 0; ask for many at once."""
        ...


def order_of(source: ClipSource, seed: int, window: int | None) -> Order:
    """The order of a source's clips: all shuffled, or ``window`` shards at a time; of a mixture by weight.

    Raises:
        ValueError: a window over clips that lie in no shards.
    """
    if isinstance(source, MixtureClips):
        orders = [
            order_of(member, stream_key(seed, f"data/mixture/{name}"), window)
            for name, member in source.members.items()
        ]
        return MixtureOrder(seed, source.weights, orders, source.starts)
    if window is None:
        return FullShuffle(seed, len(source))
    shards = source.shards() if isinstance(source, HasShards) else []
    if not shards:
        raise ValueError(
            f"data.shuffle_window_shards={window}: {type(source).__name__} has no shards; leave it null, "
            "which shuffles all clips together"
        )
    return WindowShuffle(seed, shards, window)


def steps_of(source: ClipSource, seed: int, split: BatchSplit, window: int | None) -> Steps:
    """How ``source`` is drawn from by one rank."""
    if isinstance(source, BucketClips):
        return BucketSteps(source, seed, split, window)
    return UniformSteps(order_of(source, seed, window), split)


class UniformSteps:
    """Clips of one size."""

    def __init__(self, order: Order, split: BatchSplit) -> None:
        self.order, self.split = order, split
        self.accumulation, self.micro_batch = split.accumulation, split.micro_batch

    def micro_batches(self, micro_steps: Sequence[int]) -> list[Drawn]:
        ordinals = torch.stack([self.split.ordinals(step) for step in micro_steps])
        clips = self.order(ordinals.flatten()).view_as(ordinals)
        return list(zip(ordinals, clips))


@dataclass(frozen=True)
class BucketBatch:
    """How a bucket is drawn from.

    Attributes:
        bucket: the clips.
        micro_batch: clips in a forward pass of one rank.
        step_clips: clips in an optimiser step over all ranks.
        fill: share of the token budget that a forward pass uses.
        step_share: share of the steps.
    """

    bucket: Bucket
    micro_batch: int
    step_clips: int
    fill: float
    step_share: float


def bucket_batches(clips: BucketClips, global_batch: int, micro_batch: int) -> list[BucketBatch]:
    """Batch sizes by token budget, and how often each bucket's turn comes."""
    split = BatchSplit(global_batch, micro_batch)
    budget = micro_batch * max(bucket.num_tokens for bucket in clips.buckets)
    sizes = [budget // bucket.num_tokens for bucket in clips.buckets]
    weights = [bucket.num_clips / size for bucket, size in zip(clips.buckets, sizes)]
    shares = _step_shares(clips, weights)
    return [
        BucketBatch(bucket, size, size * split.accumulation, size * bucket.num_tokens / budget, share)
        for bucket, size, share in zip(clips.buckets, sizes, shares)
    ]


def _step_shares(clips: BucketClips, weights: Sequence[float]) -> list[float]:
    every = clips.image_every
    if every is None:
        return [weight / sum(weights) for weight in weights]
    shares = {True: 1 / every, False: 1 - 1 / every}
    kinds = [bucket.is_image for bucket in clips.buckets]
    totals = {kind: sum(w for w, k in zip(weights, kinds) if k == kind) for kind in shares}
    return [shares[kind] * weight / totals[kind] for weight, kind in zip(weights, kinds)]


class BucketSteps:
    """Clips in buckets, one bucket a step.

    Args:
        clips: in their buckets.
        seed: of the run.
        split: of the largest bucket; the others are cut into as many parts.
        window: shards shuffled at a time, of each bucket; None shuffles all its clips together.
    """

    def __init__(self, clips: BucketClips, seed: int, split: BatchSplit, window: int | None) -> None:
        self.split, self.accumulation = split, split.accumulation
        batches = bucket_batches(clips, split.global_batch, split.micro_batch)
        self._sizes = torch.tensor([batch.micro_batch for batch in batches])
        self._step_clips = torch.tensor([batch.step_clips for batch in batches])
        self.micro_batch = int(self._sizes.max())
        self._orders = [
            order_of(member, stream_key(seed, f"data/bucket/{name}"), window)
            for name, member in clips.members.items()
        ]
        self._starts = clips.starts
        self._every = clips.image_every
        self._turns = []  # of videos and of images, or of all that there is: (buckets, turns)
        for kind in (False, True):
            mine = [place for place, batch in enumerate(batches) if batch.bucket.is_image == kind]
            if mine:
                turns = Interleave([batches[p].step_share for p in mine], seed, f"data/buckets/{kind}")
                self._turns.append((torch.tensor(mine), turns))

    def micro_batches(self, micro_steps: Sequence[int]) -> list[Drawn]:
        split = self.split
        at = torch.tensor(micro_steps)
        step, part = at // self.accumulation, at % self.accumulation
        bucket, number = self.bucket_of(step)
        sizes = self._sizes[bucket]
        offset = (part * split.world_size + split.rank) * sizes  # within the step
        ordinals = self.samples_before(step) + offset
        in_bucket = number * self._step_clips[bucket] + offset
        drawn: list[Drawn | None] = [None] * len(micro_steps)
        for which in bucket.unique().tolist():
            mine = (bucket == which).nonzero().flatten()
            slots = torch.arange(int(self._sizes[which]))
            wanted = in_bucket[mine, None] + slots
            clips = self._starts[which] + self._orders[which](wanted.flatten()).view_as(wanted)
            for row, place in enumerate(mine.tolist()):
                drawn[place] = (ordinals[place] + slots, clips[row])
        return [each for each in drawn if each is not None]

    def bucket_of(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The place of the bucket of each of ``steps`` (B,), and how many steps it had before."""
        bucket, number = torch.empty_like(steps), torch.empty_like(steps)
        for (places, turns), mine, earlier in self._kinds(steps):
            which, number[mine] = turns(earlier[mine])
            bucket[mine] = places[which]
        return bucket, number

    def samples_before(self, steps: Tensor) -> Tensor:
        """Samples that the run draws before each of ``steps`` (B,)."""
        total = torch.zeros_like(steps)
        for (places, turns), _, earlier in self._kinds(steps):
            total += (turns.counts(earlier) * self._step_clips[places, None]).sum(0)
        return total

    def _kinds(self, steps: Tensor) -> list[tuple[tuple[Tensor, Interleave], Tensor, Tensor]]:
        """For videos, then images: turns, which of ``steps`` are theirs, how many of theirs came before."""
        if self._every is None:
            return [(self._turns[0], torch.ones_like(steps, dtype=torch.bool), steps)]
        images = steps // self._every
        is_image = steps % self._every == self._every - 1
        return [(self._turns[0], ~is_image, steps - images), (self._turns[1], is_image, images)]
