"""Publishing a trained network that is a diffusers class, as diffusers keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from sana_train.utils.files import publish_directory, write_json

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


@torch.no_grad()
def round_to_bf16(model: nn.Module) -> None:
    """So that what is judged is what will be published."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


def publish_diffusers(directory: Path, part: str, model: Any, record: dict[str, Any]) -> None:
    """``directory/part`` with config and bf16 weights, and ``directory/record.json``, all or none."""
    state = {
        name: value.detach().cpu().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
    }
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    with publish_directory(directory) as scratch:
        (scratch / part).mkdir()
        save_file(state, scratch / part / WEIGHTS_NAME)
        write_json(scratch / part / "config.json", {"_class_name": type(model).__name__, **config})
        write_json(scratch / "record.json", record)
