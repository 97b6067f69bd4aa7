"""Memory counted on tensors without numbers: what is exact, and what a GPU measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.memory import StepMemory, step_memory

SHAPE = (4, 3, 4, 5)
MEASURED = sorted((Path(__file__).parents[2] / "experiments/real_size/parts").glob("step*.json"))


def build(depth: int = 2) -> SanaVideoDiT:
    return SanaVideoDiT(4, [1, 1, 1], depth, 48, 2, 3, 2.5, 10, 7)


def count(**changes: Any) -> StepMemory:
    usual = {"micro_batch": 1, "is_accumulating": False, "recompute": "none", "optimiser": "adamw"}
    return step_memory(build, SHAPE, use_autocast=True, **{**usual, **changes})


def test_what_stays_is_exact() -> None:
    memory = count()
    num_parameters = sum(parameter.numel() for parameter in build().parameters())
    num_tensors = len(list(build().parameters()))
    assert memory.weights == 4 * (num_parameters + 7 * 10)  # and the null caption
    assert memory.gradients == memory.ema == 4 * num_parameters
    assert memory.optimiser == 8 * num_parameters + 4 * num_tensors  # two moments, and a step count
    assert count(optimiser="muon").optimiser < memory.optimiser


def test_activations_grow_with_clips_and_shrink_with_recomputing() -> None:
    one, two, three = (count(micro_batch=number).peak for number in (16, 32, 48))
    assert three - two == pytest.approx(two - one, rel=0.01)
    none, selective, full = (
        count(micro_batch=16, recompute=policy).activations for policy in ("none", "selective", "full")
    )
    assert none > 1.5 * selective > 1.5 * full


def test_gradients_that_are_there_already_count_from_the_start() -> None:
    first, later = (count(micro_batch=16, is_accumulating=late) for late in (False, True))
    assert 0 < later.peak - first.peak <= first.gradients


@pytest.mark.slow
def test_what_a_gpu_measured_is_within_10_percent() -> None:
    """Every recorded forward and backward pass at 2B with float32 weights."""
    rows = [(part, row) for part in map(json.loads, map(Path.read_text, MEASURED)) for row in part["rows"]]
    compared = 0
    for part, row in rows:
        if row["pass"] != "forward_backward" or row["weights"] != "float32" or row["compiled"]:
            continue
        memory = step_memory(
            lambda: SanaVideoDiT(128, [1, 1, 1], 20, 2240, 20, 20, 3.0, 2304, 300),
            (128, *part["grid"]),
            micro_batch=1,
            is_accumulating=False,
            recompute=row.get("recompute", "none"),
            optimiser="adamw",
            use_autocast=True,
        )
        counted = memory.peak - memory.optimiser - memory.ema
        assert counted / 2**30 == pytest.approx(row["allocated_gib"], rel=0.1)
        compared += 1
    assert compared
