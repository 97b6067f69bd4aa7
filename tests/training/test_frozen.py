"""Frozen encoders are used, moved and hashed, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from training_harness import ScaledSpace, final_state, launch, make_task

from sana_train.training.callbacks.base import StepCallback
from sana_train.training.shell import TrainingShell
from sana_train.utils.hashing import weights_hash


def run_record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


def test_frozen_parts_are_in_no_optimiser_average_or_checkpoint(tmp_path: Path) -> None:
    task = make_task()
    shell = launch(tmp_path, max_steps=2, task=task, checkpoint_every=2)
    optimised = {id(p) for group in shell.trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in task.model.parameters()}
    names = set(task.model.state_dict())
    for file in ("model", "ema"):
        with safe_open(tmp_path / "checkpoints" / "step_0000002" / f"{file}.safetensors", "pt") as weights:
            assert set(weights.keys()) == names
    assert set(shell.state_dict()) == {f"model.{name}" for name in names}
    assert len(task.frozen) == 2
    assert not any(p.requires_grad or p.grad is not None for part in task.frozen for p in part.parameters())
    assert not any(part.training for part in task.frozen)


def test_hashes_before_and_after_are_recorded(tmp_path: Path) -> None:
    task = make_task()
    task.frozen.append(ScaledSpace())  # a second one of the same class
    expected = [weights_hash(part) for part in task.frozen]
    launch(tmp_path, max_steps=2, task=task)
    record = run_record(tmp_path)
    assert list(record["frozen_before"].values()) == expected
    assert record["frozen_after"] == record["frozen_before"]
    assert record["completed_steps"] == 2
    assert record["run_id"] == tmp_path.name


def test_a_run_does_not_go_on_with_other_frozen_weights(tmp_path: Path) -> None:
    launch(tmp_path, max_steps=2)
    before = run_record(tmp_path)
    task = make_task()
    task.frozen[0].scale.data += 1e-3
    with pytest.raises(ValueError, match=r"not those with which .* began \(0.ScaledSpace: .* then, .* now\)"):
        launch(tmp_path, max_steps=4, task=task)
    assert run_record(tmp_path) == before
    assert launch(tmp_path, max_steps=4).completed_steps == 4


def test_a_run_without_a_checkpoint_may_begin_anew_with_other_frozen_weights(tmp_path: Path) -> None:
    launch(tmp_path, max_steps=0)
    task = make_task()
    task.frozen[0].scale.data += 1e-3
    assert launch(tmp_path, max_steps=1, task=task).completed_steps == 1


class Touch(StepCallback):
    def __init__(self, part: torch.nn.Module) -> None:
        self.part = part

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        next(self.part.parameters()).data += 1e-3


@pytest.mark.parametrize("position", [0, 1])
def test_a_frozen_part_that_changed_voids_the_run(tmp_path: Path, position: int) -> None:
    task = make_task()
    with pytest.raises(RuntimeError, match="a frozen module changed"):
        launch(tmp_path, max_steps=2, task=task, callbacks=[Touch(task.frozen[position])])
    record = run_record(tmp_path)
    assert record["frozen_after"] != record["frozen_before"]


def test_frozen_weights_of_the_model_itself_stay(tmp_path: Path) -> None:
    task = make_task()
    kept = task.model.get_parameter("caption_embed.fc1.weight").requires_grad_(False)
    before = kept.clone()
    shell = launch(tmp_path, max_steps=2, task=task)
    assert torch.equal(kept, before)
    assert torch.equal(final_state(shell)["ema/caption_embed.fc1.weight"], before)
    optimised = {id(p) for group in shell.trainer.optimizers[0].param_groups for p in group["params"]}
    assert id(kept) not in optimised
