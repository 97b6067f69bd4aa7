"""The tiny YAMLs: size, and the geometry that pairs their latents."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.protocols import Autoencoder

CONF = Path(__file__).parents[2] / "conf" / "autoencoder"


def build(name: str) -> VideoAutoencoder:
    """The YAML's class with random weights."""
    node: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    module, _, kind = node.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), kind)(**{**node, "weights": None})


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "grid", "frames"), [("dcae_v_tiny", (64, 4, 4, 4), 16), ("ltx2_tiny", (128, 3, 4, 4), 17)]
)
def test_tiny_geometry_and_size(name: str, grid: tuple[int, ...], frames: int) -> None:
    model = build(name)
    assert isinstance(model, Autoencoder)
    assert sum(value.numel() for value in model.parameters()) <= 4_000_000
    video = torch.rand(1, 3, 17, 128, 128) * 2 - 1
    latents = model.encode(video)
    assert latents.shape == (1, *grid)
    assert model.decode(latents).shape == (1, 3, frames, 128, 128)


# Not latents that are stored, and not what names another option.
WITH_WEIGHTS = sorted(path for path in CONF.glob("*.yaml") if "weights" in yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", WITH_WEIGHTS, ids=lambda path: path.stem)
def test_every_config_builds_on_meta(path: Path) -> None:
    with torch.device("meta"):
        model = build(path.stem)
    assert all(value.is_meta for value in model.parameters())
    mean, std = model.statistics()
    assert mean.shape == std.shape == (model.spec.channels,)
