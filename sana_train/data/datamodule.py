"""Clips to Lightning: an endless stream of micro-batches indexed by step, and a fixed held-out order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice

import lightning
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sana_train.data.order import BatchSplit
from sana_train.data.steps import Steps, steps_of
from sana_train.protocols import ClipSource
from sana_train.types import Batch

# The order is worked out for so many samples at once: 0.2 ms per 256 clips at worst, 5 ms if step by step.
_SAMPLES_AHEAD = 8192


class MicroBatches(IterableDataset[Batch]):
    """One rank's endless micro-batches from ``start_step`` on, dealt out to the loader's workers in turn."""

    def __init__(self, source: ClipSource, steps: Steps, start_step: int = 0) -> None:
        self.source = source
        self.steps = steps
        self.start_step = start_step

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        micro_steps = count(self.start_step * self.steps.accumulation + worker_id, num_workers)
        while True:
            ahead = list(islice(micro_steps, max(1, _SAMPLES_AHEAD // self.steps.micro_batch)))
            for ordinals, clips in self.steps.micro_batches(ahead):
                batch = self.source.batch(clips.tolist())
                # A copy that blocks would wait for all that the GPU has still to do, in every step.
                yield replace(batch, ordinals=ordinals.to(batch.index.device, non_blocking=True))


class HeldoutBatches(IterableDataset[Batch]):
    """Every held-out clip once, in index order; ordinals are the clip ids."""

    def __init__(self, source: ClipSource, batch_size: int) -> None:
        self.source = source
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.source), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(self.source)))
            batch = self.source.batch(indices)
            ordinals = torch.arange(indices.start, indices.stop, dtype=torch.int64)
            yield replace(batch, ordinals=ordinals.to(batch.index.device))


class ClipDataModule(lightning.LightningDataModule):
    """Train and held-out clips for one run.

    Args:
        train: clips to train on.
        heldout: clips to evaluate on, in index order.
        global_batch: clips per optimiser step over all ranks; a property of the run, not of the machine.
        micro_batch: clips per forward pass of one rank.
        seed: the run's seed; with the step it decides which clips a step sees.
        num_workers: loader processes per rank, for sources that decode; 0 for resident or rendered ones.
        start_step: optimiser steps the run completed before this process, where the trainer itself
            counts from zero.
        window: shards whose clips are shuffled together; None shuffles all clips together.

    Raises:
        ValueError: workers are asked for, and the clips to train on lie on a GPU.
    """

    def __init__(
        self,
        train: ClipSource,
        heldout: ClipSource,
        global_batch: int,
        micro_batch: int,
        seed: int,
        num_workers: int = 0,
        start_step: int = 0,
        window: int | None = None,
    ) -> None:
        super().__init__()
        device = _device_of(train)
        if num_workers > 0 and device.type != "cpu":
            raise ValueError(
                f"trainer.num_workers={num_workers}: {type(train).__name__} keeps or renders its clips on "
                f"{device}, which loader processes cannot use; set trainer.num_workers=0"
            )
        self.train = train
        self.heldout = heldout
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.seed = seed
        self.num_workers = num_workers
        self.start_step = start_step
        self.window = window

    def split(self, world_size: int = 1, rank: int = 0) -> BatchSplit:
        """The cut of the global batch, with buckets the largest one's.

        Its ``accumulation`` is Lightning's accumulate_grad_batches.
        """
        return BatchSplit(self.global_batch, self.micro_batch, world_size, rank)

    def train_batches(self, start_step: int = 0, world_size: int = 1, rank: int = 0) -> MicroBatches:
        if not len(self.train):
            raise ValueError(f"{type(self.train).__name__} holds no clips; there is nothing to train on")
        steps = steps_of(self.train, self.seed, self.split(world_size, rank), self.window)
        return MicroBatches(self.train, steps, start_step)

    def heldout_batches(self, batch_size: int | None = None) -> HeldoutBatches:
        """Batches of ``batch_size`` (by default the micro-batch) held-out clips; the last may be smaller."""
        return HeldoutBatches(self.heldout, batch_size or self.micro_batch)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Starts at the run's step, so a resumed run sees the clips it would have seen."""
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("ClipDataModule has no trainer; use train_batches() outside of Lightning")
        start_step = self.start_step + trainer.global_step
        dataset = self.train_batches(start_step, trainer.world_size, trainer.global_rank)
        has_workers = self.num_workers > 0
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=has_workers,
            pin_memory=has_workers and torch.cuda.is_available(),  # by a thread, beside training
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)


def _device_of(source: ClipSource) -> torch.device:
    """Where a source makes its batches: sources that are not on the CPU say so."""
    return torch.device(getattr(source, "device", "cpu"))
