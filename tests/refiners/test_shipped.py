"""The shipped refiner, and what experiment=two_stage takes beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sana_train.cli.load import compose_config, load
from sana_train.cli.parts import Parts

WEIGHTS = "refiner.weights=${paths.weights}/ltx2_refiner"


@pytest.mark.parametrize(("scale", "wanted"), [("tiny", "LTX2TwoDecoders"), ("2b", "LTX2VideoAutoencoder")])
def test_both_stages_get_the_autoencoder_of_their_size(scale: str, wanted: str) -> None:
    cfg = compose_config(["experiment=two_stage", f"scale={scale}"])
    assert cfg.autoencoder["_target_"].endswith(f".{wanted}")


def test_clips_at_half_the_size_get_their_detail_back_and_keep_the_rest() -> None:
    small = ["trainer=cpu", "task.compile_mode=none", "task.num_heldout_clips=4"]
    cfg = compose_config(["experiment=tiny/stage2/ltx2_refiner", WEIGHTS, *small])
    parts = Parts(load(cfg), torch.device("cpu"))
    task: Any = parts.task()
    found = task.judge(parts.clips("heldout"))
    assert found["after/psnr_db"] > found["before/psnr_db"] + 2.0  # against the clip's own latents, decoded
    assert found["after/spectrum_gap"] < 0.1 * found["before/spectrum_gap"]
    for name in ("shape", "motion", "colour", "count", "background"):
        assert found[f"after/accuracy/{name}"] == 1.0
