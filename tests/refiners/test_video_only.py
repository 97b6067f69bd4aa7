"""Weights without an audio branch: the video stream of diffusers' transformer, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.refiners.ltx2 import LTX2Refiner
from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.training.tasks.diffusers_export import publish_diffusers, round_to_bf16

TINY: dict[str, Any] = {
    "sigmas": {3: [0.909375, 0.725, 0.421875, 0.0]},
    "latent_channels": 16,
    "num_layers": 2,
    "num_heads": 2,
    "head_dim": 24,
    "audio_channels": 8,
    "audio_num_heads": 2,
    "audio_head_dim": 8,
    "caption_channels": 32,
    "base_size_px": 64,
    "dtype": "float32",
}


def velocities(refiner: LTX2Refiner) -> torch.Tensor:
    torch.manual_seed(1)
    video, audio, context = torch.randn(2, 12, 16), torch.randn(2, 14, 8), torch.randn(2, 5, 32)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    t = torch.tensor([0.9, 0.3])
    return refiner.velocities(video, audio, t, PromptEmbeddings(context, context, mask), (3, 2, 2), 16.0)[0]


@torch.no_grad()
def test_it_is_the_isolated_video_stream_of_weights_with_audio(tmp_path: Path) -> None:
    torch.manual_seed(0)
    both = LTX2Refiner(**TINY, audio="isolated")
    round_to_bf16(both.transformer)
    publish_diffusers(tmp_path / "both", "transformer", both.transformer, {})
    alone = LTX2Refiner(**TINY, audio="none", weights=str(tmp_path / "both"))
    torch.testing.assert_close(velocities(alone), velocities(both), rtol=1e-5, atol=1e-5)
    names = set(alone.transformer.state_dict())
    assert not any("audio" in name or "a2v" in name for name in names)
    assert len(names) < len(both.transformer.state_dict()) / 2


@torch.no_grad()
def test_weights_without_audio_come_back_and_no_others_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    alone = LTX2Refiner(**TINY, audio="none")
    round_to_bf16(alone.transformer)
    publish_diffusers(tmp_path / "alone", "transformer", alone.transformer, {})
    again = LTX2Refiner(**TINY, audio="none", weights=str(tmp_path / "alone"))
    torch.testing.assert_close(velocities(again), velocities(alone))
    with pytest.raises(ValueError, match="does not fit"):
        LTX2Refiner(**{**TINY, "num_layers": 3}, audio="none", weights=str(tmp_path / "alone"))
    with pytest.raises(FileNotFoundError, match="trained so"):
        LTX2Refiner(**TINY, audio="none", weights=str(tmp_path))
