"""The global batch is a property of the run: how it is cut changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from training_harness import launch, make_clips, make_task, metrics

from sana_train.data.order import batch_indices
from sana_train.utils.rng import SampleRng


class Gradients(pl.Callback):
    """Keeps the gradients of the last step, as accumulated, before they are clipped."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        self.clipped_norm = 0.0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.kept = {name: p.grad.clone() for name, p in pl_module.model.named_parameters()}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.clipped_norm = global_norm([p.grad for p in pl_module.model.parameters()])


def global_norm(tensors: list[Tensor]) -> float:
    return torch.stack([tensor.norm() for tensor in tensors]).norm().item()


def gradients(run_dir: Path, **changes: Any) -> tuple[Gradients, dict[str, Any]]:
    callback = Gradients()
    launch(run_dir, max_steps=1, callbacks=[callback], **changes)
    return callback, metrics(run_dir)[0]


def assert_close(one: Gradients, other: Gradients, rtol: float = 1e-5) -> None:
    size = global_norm(list(one.kept.values()))
    differences = [one.kept[name] - other.kept[name] for name in one.kept]
    assert size > 0
    assert global_norm(differences) <= rtol * size


@pytest.mark.parametrize("micro_batch", [4, 2, 1])
def test_accumulation_gives_the_same_loss_and_gradient(tmp_path: Path, micro_batch: int) -> None:
    whole, logged = gradients(tmp_path / "whole")
    cut, logged_cut = gradients(tmp_path / "cut", micro_batch=micro_batch)
    assert_close(whole, cut)
    assert logged_cut["train/loss"] == pytest.approx(logged["train/loss"], rel=1e-6)
    assert logged_cut["train/grad_norm"] == pytest.approx(logged["train/grad_norm"], rel=1e-5)


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_a_hole_leaves_its_share_of_the_gradient_empty_and_nothing_else(
    tmp_path: Path, micro_batch: int
) -> None:
    drawn = batch_indices(3, 0, 20, 8).tolist()
    holes = [drawn[1], drawn[6]]
    one, logged = gradients(tmp_path / "one", clips=make_clips(holes=holes), micro_batch=micro_batch)
    other, _ = gradients(
        tmp_path / "other", clips=make_clips(holes=holes, garbage=5.0), micro_batch=micro_batch
    )
    assert_close(one, other)

    sound = [slot for slot, clip in enumerate(drawn) if clip not in holes]
    task, clips = make_task(), make_clips()
    batch = clips.batch([drawn[slot] for slot in sound])
    loss = task.step(batch, SampleRng(3, torch.tensor(sound)))["loss"].sum() / 8
    loss.backward()
    expected = Gradients()
    expected.kept = {name: p.grad for name, p in task.model.named_parameters()}
    assert_close(expected, one)
    assert logged["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["train/hole_share"] == pytest.approx(2 / 8)


def test_the_norm_is_logged_before_clipping(tmp_path: Path) -> None:
    loose, logged = gradients(tmp_path / "loose", clip_norm=1e6)
    norm = global_norm(list(loose.kept.values()))
    assert logged["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert loose.clipped_norm == pytest.approx(norm, rel=1e-5)
    tight, logged = gradients(tmp_path / "tight", clip_norm=norm / 10)
    assert logged["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert tight.clipped_norm == pytest.approx(norm / 10, rel=1e-3)


def test_the_logged_loss_is_the_mean_since_the_last_log(tmp_path: Path) -> None:
    launch(tmp_path / "each", max_steps=4)
    launch(tmp_path / "window", max_steps=4, log_every=2, checkpoint_every=1, micro_batch=4)
    each = [line["train/loss"] for line in metrics(tmp_path / "each")]
    window = [line["train/loss"] for line in metrics(tmp_path / "window")]
    assert window == pytest.approx([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2], rel=1e-4)
