"""Diffusers' SANA-Video transformer with the weights of one of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sana_train.cli.benchmark_cases import Inputs
from sana_train.cli.diffusers_dit import diffusers_arguments, diffusers_class
from sana_train.models import keys
from sana_train.models.sana_video import MAX_TIMESTEP, SanaVideoDiT


def diffusers_twin(model: SanaVideoDiT) -> Any:
    """A network of diffusers' class in float32, on the device of ``model``, with copies of its weights.

    Raises:
        ValueError: our key tables do not name exactly the class's own tensors.
    """
    device = next(model.parameters()).device
    with torch.device(device):
        twin = diffusers_class()(**diffusers_arguments(model))
    state, _ = keys.to_diffusers(model.state_dict())
    found = twin.load_state_dict(state, strict=False)
    if found.missing_keys or found.unexpected_keys:
        raise ValueError(
            f"diffusers' class and our key tables differ: missing {found.missing_keys[:4]}, unexpected "
            f"{found.unexpected_keys[:4]}; this benchmark is for diffusers 0.42"
        )
    return twin


def twin_velocity(twin: Any, inputs: Inputs) -> Tensor:
    """(B, C, T, H, W), by diffusers' own forward."""
    return twin(
        inputs.latents,
        inputs.context,
        MAX_TIMESTEP * inputs.t,
        encoder_attention_mask=inputs.mask,
        return_dict=False,
    )[0]
