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
    assert "scale=2b source=wan480p" in text
    assert "32 clips per step; smaller than a GPU run's 256" in text


def test_says_how_a_batch_is_split() -> None:
    assert "64 clips per step, 8 at a time" in shown("experiment=tiny/dcae_v", "training.micro_batch=8")
