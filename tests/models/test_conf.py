from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from sana_train.models.sana_video import SanaVideoDiT
from sana_train.protocols import Denoiser

FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("sana_video_*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_true_size_model_runs_on_meta(file):
    node = yaml.safe_load(file.read_text())
    assert node.pop("_target_") == "sana_train.models.sana_video.SanaVideoDiT"
    with torch.device("meta"):
        model = SanaVideoDiT(**node)
        assert isinstance(model, Denoiser)
        context = torch.empty(2, *model.null_context.shape)
        state = model.prepare(context, torch.ones(context.shape[:2], dtype=torch.bool))
        latents = torch.empty(2, model.latent_channels, 3, 4, 4)
        assert model(latents, torch.empty(2), state).shape == latents.shape


def test_tiny_model_stays_within_its_budget():
    node = yaml.safe_load(next(file for file in FILES if "tiny" in file.stem).read_text())
    node.pop("_target_")
    with torch.device("meta"):
        num_parameters = sum(parameter.numel() for parameter in SanaVideoDiT(**node).parameters())
    assert 4_500_000 <= num_parameters <= 5_000_000
