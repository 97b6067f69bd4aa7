from __future__ import annotations

import pytest
import torch

from sana_train.models.sana_video import SanaVideoDiT

SIZES = {
    "latent_channels": 4,
    "patch_size": [1, 1, 1],
    "depth": 2,
    "width": 48,
    "num_heads": 2,
    "cross_num_heads": 3,
    "mlp_ratio": 2.5,
    "caption_dim": 10,
    "max_tokens": 7,
}


def build(**changes) -> SanaVideoDiT:
    """A small DiT whose every weight is random, also those that start at zero or one.

    Matrices keep the variance of what passes through, so that captions reach the output with full
    contrast; with the training initialisation their gradients are differences of near-equal numbers.
    """
    torch.manual_seed(0)
    model = SanaVideoDiT(**{**SIZES, **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim == 1:
                parameter.normal_(std=0.1)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


@pytest.fixture
def make_dit():
    return build
