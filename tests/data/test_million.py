"""One epoch of a million clips over a hundred changes of ranks and workers: nothing lost, nothing doubled."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sana_train.data import datamodule
from sana_train.data.datamodule import ClipDataModule
from sana_train.types import Batch

GLOBAL_BATCH = 960
NUM_CLIPS = 1_000_000


@dataclass
class Keys:
    """Clips without pixels, in shards of a hundred or in three."""

    num_shards: int

    def __len__(self) -> int:
        return NUM_CLIPS

    def shards(self) -> list[range]:
        starts = [NUM_CLIPS * shard // self.num_shards for shard in range(self.num_shards + 1)]
        return [range(start, stop) for start, stop in pairwise(starts)]

    def batch(self, indices: Sequence[int]) -> Batch:
        index = torch.tensor(indices)
        return Batch(index=index, ordinals=index, weight=index, captions=())


@pytest.mark.parametrize("num_shards", [10_000, 3], ids=["10,000 shards", "fewer shards than workers"])
@pytest.mark.parametrize(
    "window",
    [
        pytest.param(None, id="all shuffled"),
        pytest.param(2, id="two shards at a time", marks=pytest.mark.slow),
    ],
)
def test_a_million_keys_over_a_hundred_changes(
    num_shards: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker of every rank draws what it would in training, from the step at which the run goes on."""
    info = SimpleNamespace(id=0, num_workers=1)
    monkeypatch.setattr(datamodule, "get_worker_info", lambda: info)
    monkeypatch.setattr(datamodule, "_SAMPLES_AHEAD", 480)
    source: Any = Keys(num_shards)
    num_steps = -(-NUM_CLIPS // GLOBAL_BATCH)
    draw = random.Random(0)
    borders = [0, *sorted(draw.sample(range(1, num_steps), 100)), num_steps]
    by_slot = torch.full((num_steps * GLOBAL_BATCH,), -1)
    layouts = set()
    for first, last in pairwise(borders):
        world_size, num_workers = draw.choice([1, 2, 3, 4, 8]), draw.choice([1, 2, 3, 5, 8])
        micro_batch = draw.choice([m for m in (20, 40, 60, 120) if GLOBAL_BATCH % (m * world_size) == 0])
        layouts.add((world_size, num_workers))
        module = ClipDataModule(source, source, GLOBAL_BATCH, micro_batch, seed=7, window=window)
        num_mine = (last - first) * module.split(world_size).accumulation
        for rank in range(world_size):
            for info.id in range(num_workers):
                info.num_workers = num_workers
                batches = iter(module.train_batches(first, world_size, rank))
                for batch in islice(batches, len(range(info.id, num_mine, num_workers))):
                    assert (by_slot[batch.ordinals] == -1).all()  # no slot of the stream comes twice
                    by_slot[batch.ordinals] = batch.index
    assert len(layouts) > 15 and max(w * n for w, n in layouts) == 64
    assert (by_slot >= 0).all()
    assert torch.equal(by_slot[:NUM_CLIPS].sort().values, torch.arange(NUM_CLIPS))
    alone = ClipDataModule(source, source, GLOBAL_BATCH, 960, seed=7, window=window)
    info.id, info.num_workers = 0, 1
    stream = [batch.index for batch in islice(alone.train_batches(), 5)]
    assert torch.equal(torch.cat(stream), by_slot[: 5 * GLOBAL_BATCH])
