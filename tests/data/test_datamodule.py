"""What a training run draws: the same clips for any ranks, accumulation, workers and any resume."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from sana_train.data import datamodule, order
from sana_train.data.datamodule import ClipDataModule
from sana_train.data.order import batch_indices, clip_indices
from sana_train.types import Batch


def drawn(batches: list[Batch]) -> tuple[list[int], list[int]]:
    return (
        torch.cat([batch.index for batch in batches]).tolist(),
        torch.cat([batch.ordinals for batch in batches]).tolist(),
    )


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 4), (2, 2), (2, 4), (4, 1)])
def test_ranks_and_rounds_draw_the_same_step(squares: Any, world_size: int, micro_batch: int) -> None:
    module = ClipDataModule(squares, squares, global_batch=8, micro_batch=micro_batch, seed=3)
    rounds = module.split(world_size).accumulation
    per_rank = [list(islice(module.train_batches(2, world_size, rank), rounds)) for rank in range(world_size)]
    index, ordinals = drawn([batches[j] for j in range(rounds) for batches in per_rank])
    assert ordinals == list(range(16, 24))
    assert index == batch_indices(3, 2, len(squares), 8).tolist()


def test_the_order_is_worked_out_many_steps_at_a_time(squares: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def count(seed: int, ordinals: torch.Tensor, num_clips: int) -> torch.Tensor:
        asked.append(len(ordinals))
        return clip_indices(seed, ordinals, num_clips)

    monkeypatch.setattr(order, "clip_indices", count)
    monkeypatch.setattr(datamodule, "_SAMPLES_AHEAD", 12)
    module = ClipDataModule(squares, squares, global_batch=8, micro_batch=2, seed=3)
    index, ordinals = drawn(list(islice(module.train_batches(1, world_size=2, rank=1), 14)))
    assert asked == [12, 12, 12]
    assert ordinals == [step * 8 + slot for step in range(1, 8) for slot in (2, 3, 6, 7)]
    assert index == clip_indices(3, torch.tensor(ordinals), len(squares)).tolist()


def test_ordinals_do_not_change_the_clip(squares: Any) -> None:
    module = ClipDataModule(squares, squares, global_batch=4, micro_batch=4, seed=0)
    batch = next(iter(module.train_batches(9)))
    assert batch.video is not None
    for row, index in enumerate(batch.index.tolist()):
        assert torch.equal(batch.video[row], squares.clip(index))
        assert batch.captions[row] == squares.caption(index)


def test_heldout_clips_come_once_in_order(squares: Any) -> None:
    module = ClipDataModule(squares, squares, global_batch=4, micro_batch=4, seed=0)
    batches = module.heldout_batches(3)
    assert len(batches) == 4
    index, ordinals = drawn(list(batches))
    assert index == ordinals == list(range(10))


def test_empty_source_is_refused(squares: Any) -> None:
    empty = type(squares)(0)
    module = ClipDataModule(empty, squares, global_batch=4, micro_batch=4, seed=0)
    with pytest.raises(ValueError, match="holds no clips"):
        module.train_batches()


def test_workers_are_refused_for_clips_on_a_gpu(squares: Any) -> None:
    """A forked worker would die with 'Cannot re-initialize CUDA in forked subprocess'."""
    squares.device = torch.device("cuda")
    with pytest.raises(
        ValueError, match=r"trainer\.num_workers=2: MovingSquares .* on cuda, .* trainer\.num_workers=0"
    ):
        ClipDataModule(squares, squares, 4, 2, seed=1, num_workers=2)
    ClipDataModule(squares, squares, 4, 2, seed=1)
    squares.device = torch.device("cpu")
    ClipDataModule(squares, squares, 4, 2, seed=1, num_workers=2)


@pytest.mark.parametrize(
    ("num_workers", "has_gpu", "pins"), [(0, True, False), (2, False, False), (2, True, True)]
)
def test_workers_stay_and_pin_what_goes_to_a_gpu(
    squares: Any, monkeypatch: pytest.MonkeyPatch, num_workers: int, has_gpu: bool, pins: bool
) -> None:
    data = ClipDataModule(squares, squares, 4, 2, seed=1, num_workers=num_workers)
    data.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    loader = data.train_dataloader()
    assert loader.persistent_workers == (num_workers > 0)
    assert loader.pin_memory == pins


class Recorder(lightning.LightningModule):
    """Trains one number and keeps the ordinals and clip ids of every micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.seen: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        assert batch.video is not None
        return (self.scale - batch.video.mean()) ** 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    squares: Any, *, max_steps: int, num_workers: int = 0, start_step: int = 0, resume: Path | None = None
) -> Recorder:
    module = Recorder()
    data = ClipDataModule(squares, squares, 4, 2, seed=1, num_workers=num_workers, start_step=start_step)
    trainer = lightning.Trainer(
        max_steps=max_steps,
        accumulate_grad_batches=data.split().accumulation,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=False if resume else None)
    return module


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_sees_the_same_stream_with_workers_and_after_resume(
    squares: Any, tmp_path: Path, num_workers: int
) -> None:
    whole = drawn(fit(squares, max_steps=5).seen)
    assert whole[1] == list(range(20))
    first = fit(squares, max_steps=3, num_workers=num_workers)
    first.trainer.save_checkpoint(tmp_path / "three.ckpt")
    rest = fit(squares, max_steps=5, num_workers=num_workers, resume=tmp_path / "three.ckpt")
    joined = drawn(first.seen + rest.seen)
    assert joined == whole


def test_a_trainer_that_counts_from_zero_goes_on_at_start_step(squares: Any) -> None:
    whole = drawn(fit(squares, max_steps=5).seen)
    first, rest = fit(squares, max_steps=3), fit(squares, max_steps=2, start_step=3)
    assert drawn(first.seen + rest.seen) == whole
