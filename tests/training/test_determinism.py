"""``trainer.deterministic``: what it asks of torch, and that a run can be had with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_harness import assert_same_run, launch

from sana_train.training.determinism import set_determinism


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    set_determinism(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.backends.cudnn.benchmark = False


def test_kernels_are_fixed_and_no_search_is_made(tmp_path: Path) -> None:
    loose = launch(tmp_path / "loose", max_steps=2)
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    fixed = launch(tmp_path / "fixed", max_steps=2, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert_same_run(loose, fixed)  # a CPU has no other kernels


def test_the_next_job_of_a_sweep_is_free_again() -> None:
    set_determinism(True)
    set_determinism(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
