"""A sharded model is judged whole, on the first rank alone, by its averages; training goes on unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rank_processes import exit_codes
from safetensors.torch import load_file, save_file
from training_harness import launch, make_task, metrics

from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.callbacks.convergence import ConvergenceCallback


def train_and_evaluate(run_dir: Path, grid: list[int]) -> None:
    run_dir.mkdir(exist_ok=True)
    task = make_task()
    seen: list[Any] = []

    def evaluate(step: int) -> dict[str, float]:
        model = seen[0]  # as others got hold of it before it was sharded
        assert not model.training
        state = {name: value.clone() for name, value in model.state_dict().items()}
        save_file(state, run_dir / f"seen_{step}.safetensors")
        generator = torch.Generator().manual_seed(2)
        latents = torch.randn(1, 4, 2, 3, 3, generator=generator)
        context = model.prepare(torch.ones(1, 2, 6), torch.ones(1, 2))
        return {"heldout/output": model(latents, torch.ones(1), context).sum().item()}

    watch = ConvergenceCallback(grid, evaluate, lambda step, values: False)

    class Remember(StepCallback):
        def setup(self, *_: Any, **__: Any) -> None:
            seen.append(task.model)

    launch(
        run_dir,
        max_steps=4,
        task=task,
        micro_batch=4,
        devices=2,
        callbacks=[Remember(), watch],
        strategy="fsdp2",
        checkpoint_every=2,
    )


def losses(run_dir: Path) -> list[float]:
    return [line["train/loss"] for line in metrics(run_dir) if "train/loss" in line]


def test_the_first_rank_sees_the_averages_of_the_whole_model(tmp_path: Path) -> None:
    watched, left_alone = tmp_path / "watched", tmp_path / "left_alone"
    assert exit_codes(train_and_evaluate, watched, [0, 2, 4]) == [0, 0]
    for step in (2, 4):
        seen = load_file(watched / f"seen_{step}.safetensors")
        saved = load_file(ckpt.checkpoint_path(watched, step) / "ema.safetensors")
        assert seen.keys() == saved.keys()
        assert all(torch.equal(seen[name], saved[name]) for name in saved)
    outputs = [line for line in metrics(watched) if "heldout/output" in line]
    assert [line["step"] for line in outputs] == [0, 2, 4]

    assert exit_codes(train_and_evaluate, left_alone, []) == [0, 0]
    losses = [
        [line["train/loss"] for line in metrics(run) if "train/loss" in line] for run in (watched, left_alone)
    ]
    assert losses[0] == losses[1]
