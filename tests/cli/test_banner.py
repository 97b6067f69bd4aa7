"""What a run says of itself."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from rich.console import Console

from sana_train.cli import banner
from sana_train.cli.load import compose_config, load


def shown(*overrides: str) -> str:
    out = io.StringIO()
    console = Console(file=out, width=400)
    banner.show(console, load(compose_config(overrides)), "mine", Path("runs/mine"), torch.device("cpu"))
    return out.getvalue()


def test_names_scale_batch_and_the_way_to_2b() -> None:
    text = shown()
    assert "scale=tiny" in text
    assert "scale=2b says" in text
    assert "32 clips per step; smaller than a GPU run's 256" in text


def test_published_widths_on_a_cpu_are_no_smaller_batch_but_a_missing_gpu() -> None:
    text = shown("scale=2b")
    assert "torch sees no GPU" in text
    assert "experiment=record/adapt" not in text


def test_says_how_a_batch_is_split() -> None:
    assert "64 clips per step, 8 at a time" in shown("training.global_batch=64", "training.micro_batch=8")


def test_the_closing_table_names_what_is_there_and_where(tmp_path: Path) -> None:
    run_dir = tmp_path / ("long-run-id-" * 12)
    (run_dir / "export").mkdir(parents=True)
    (run_dir / "metrics.jsonl").touch()
    out = io.StringIO()
    banner.done(Console(file=out, width=80), run_dir, 500, load(compose_config()))
    text = out.getvalue()
    assert f"at step 500, in {run_dir}:" in text  # in one piece, to be copied
    assert "metrics.jsonl" in text and "export" in text
    assert "convergence.png" not in text
