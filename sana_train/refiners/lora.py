"""Low-rank adapters, added to the weights they adapt: a fused one costs nothing at a step.

Reads the published LTX-2 layout (``diffusion_model.<layer>.lora_A.weight``, Lightricks' layer names) and that
of diffusers (``transformer.<layer>...``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sana_train.utils.torch_files import read_safetensors

# Lightricks' name of a layer -> diffusers' name, of whole dotted parts.
_RENAMED = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
}
_KEY = re.compile(
    r"(?:diffusion_model|transformer)\.(?P<layer>.+)\.(?P<what>lora_A\.weight|lora_B\.weight|alpha)"
)


@torch.no_grad()
def fuse_lora_(model: nn.Module, file: Path, strength: float = 1.0) -> int:
    """Add ``strength * (alpha / rank) * B A`` to every adapted linear, in place; returns how many.

    Nothing is changed unless every adapter of the file fits. ``alpha`` is the rank where the file has none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown key, half an adapter, or one of a layer that is not there or of another size.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"no LoRA at {file.absolute()}; fetch ltx-2-19b-distilled-lora-384.safetensors of the repository "
            "Lightricks/LTX-2, or give merged weights and lora=null"
        )
    adapters = _adapters(read_safetensors(file), file)
    layers = dict(model.named_modules())
    for name, adapter in adapters.items():
        _check(name, adapter, layers.get(name), file)
    for name, adapter in adapters.items():
        weight: Any = layers[name].weight
        down, up = (
            adapter[what].to(weight.device, torch.float32) for what in ("lora_A.weight", "lora_B.weight")
        )
        rank = down.shape[0]
        scale = strength * float(adapter.get("alpha", torch.tensor(rank))) / rank
        weight.copy_(weight.float() + scale * (up @ down))  # summed in fp32, rounded once
    return len(adapters)


def _adapters(tensors: dict[str, Tensor], file: Path) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(
                f"{file} holds {key!r}; expected keys like diffusion_model.transformer_blocks.0.attn1.to_q"
                ".lora_A.weight: it is no LoRA of an LTX-2 transformer"
            )
        layer = ".".join(_RENAMED.get(part, part) for part in match["layer"].split("."))
        found.setdefault(layer, {})[match["what"]] = value
    if not found:
        raise ValueError(f"{file} is an empty LoRA")
    return found


def _check(name: str, adapter: dict[str, Tensor], layer: nn.Module | None, file: Path) -> None:
    missing = {"lora_A.weight", "lora_B.weight"} - adapter.keys()
    if missing:
        raise ValueError(f"{file} lacks {name}.{min(missing)}; fetch it again")
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"{file} adapts {name}, which is no linear layer of the refiner: another generation's?"
        )
    made = (adapter["lora_B.weight"].shape[0], adapter["lora_A.weight"].shape[1])
    if made != tuple(layer.weight.shape):
        raise ValueError(
            f"{file} adapts {name} as {made}, the refiner has {tuple(layer.weight.shape)}: of another model?"
        )
