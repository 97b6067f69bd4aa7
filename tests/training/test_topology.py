"""A step is made of the same samples on any number of ranks, rounds and data workers."""

from __future__ import annotations

import random
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_harness import make_clips, make_task

from sana_train.data import datamodule
from sana_train.data.datamodule import ClipDataModule
from sana_train.text.dropout import drop_captions
from sana_train.types import Batch
from sana_train.utils.rng import SampleRng

GLOBAL_BATCH = 24
STEPS = range(3, 6)  # on from a checkpoint, over the end of an epoch of 20 clips


def of_rank(
    module: ClipDataModule, world_size: int, rank: int, workers: int, monkeypatch: Any
) -> list[Batch]:
    """The micro-batches of ``STEPS`` as torch's loader takes them: from each worker in turn."""
    rounds = len(STEPS) * module.split(world_size).accumulation
    streams = []
    for worker in range(max(1, workers)):
        info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
        monkeypatch.setattr(datamodule, "get_worker_info", lambda info=info: info)
        stream = iter(module.train_batches(STEPS.start, world_size, rank))
        streams.append(list(islice(stream, -(-rounds // max(1, workers)))))
    return [streams[i % len(streams)][i // len(streams)] for i in range(rounds)]


def drawn(batches: list[Batch]) -> dict[int, tuple[Any, ...]]:
    """Ordinal -> clip, caption and all that is random about the sample, by the network's own functions."""
    task, samples = make_task(), {}
    for batch in batches:
        assert batch.latents is not None and batch.context is not None and batch.context_mask is not None
        rng = SampleRng(3, batch.ordinals)
        null = torch.full_like(task.model.null_context, torch.nan)
        context, _ = drop_captions(batch.context, batch.context_mask, null, rng, 0.5)
        noise = rng.normal("noise", tuple(batch.latents.shape[1:]))
        t = task.time_sampler.sample(rng)
        for row, ordinal in enumerate(batch.ordinals.tolist()):
            is_dropped = bool(context[row].isnan().any())
            value = (batch.index[row].item(), batch.captions[row], noise[row], t[row].item(), is_dropped)
            assert ordinal not in samples
            samples[ordinal] = value
    return samples


@pytest.mark.parametrize("trial", range(25))
def test_any_topology_draws_the_same_global_batches(monkeypatch: pytest.MonkeyPatch, trial: int) -> None:
    # The order is worked out again and again on the way, not for thousands of samples that nobody takes.
    monkeypatch.setattr(datamodule, "_SAMPLES_AHEAD", 16)
    draw = random.Random(trial)
    world_size = draw.choice([1, 2, 3, 4, 6, 8, 12, 24])
    per_rank = GLOBAL_BATCH // world_size
    micro_batch = draw.choice([n for n in range(1, per_rank + 1) if per_rank % n == 0])
    clips = make_clips(holes=[4])

    def samples(world_size: int, micro_batch: int, workers: list[int]) -> dict[int, tuple[Any, ...]]:
        module = ClipDataModule(clips, clips, GLOBAL_BATCH, micro_batch, seed=3)
        ranks = [of_rank(module, world_size, r, workers[r], monkeypatch) for r in range(world_size)]
        return drawn([batch for rank in ranks for batch in rank])

    expected = samples(1, GLOBAL_BATCH, [0])
    found = samples(world_size, micro_batch, [draw.randrange(6) for _ in range(world_size)])
    assert sorted(found) == list(range(STEPS.start * GLOBAL_BATCH, STEPS.stop * GLOBAL_BATCH))
    assert 0.2 < sum(value[-1] for value in expected.values()) / len(expected) < 0.8
    for ordinal, (clip, caption, noise, t, is_dropped) in expected.items():
        assert found[ordinal][:2] == (clip, caption)
        assert torch.equal(found[ordinal][2], noise)
        assert found[ordinal][3:] == (t, is_dropped)
