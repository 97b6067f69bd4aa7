"""Our DiT as diffusers' ``SanaVideoTransformer3DModel``: its configuration, and its own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_train.models.sana_video import MAX_TIMESTEP, SanaVideoBlock, SanaVideoDiT
from sana_train.utils.torchvision_shim import ensure_torchvision

# Diffusers' pipeline picks its table of resolutions by it; the published models have these two.
_SAMPLE_SIZE_480P, _SAMPLE_SIZE_720P = 30, 22


def diffusers_class() -> Any:
    ensure_torchvision()
    from diffusers import SanaVideoTransformer3DModel  # an import of seconds

    return SanaVideoTransformer3DModel


def diffusers_arguments(model: SanaVideoDiT) -> dict[str, Any]:
    """What diffusers' class is to be called with for the geometry of ``model``, which may be on meta."""
    block, width = model.blocks[0], model.caption_norm.weight.numel()
    assert isinstance(block, SanaVideoBlock)
    cross_heads = block.cross_attn.num_heads
    return {
        "in_channels": model.latent_channels,
        "out_channels": model.latent_channels,
        "num_attention_heads": block.self_attn.num_heads,
        "attention_head_dim": model.head_dim,
        "num_layers": len(model.blocks),
        "num_cross_attention_heads": cross_heads,
        "cross_attention_head_dim": width // cross_heads,
        "cross_attention_dim": width,
        "caption_channels": model.null_context.shape[1],
        "mlp_ratio": model.mlp_ratio,
        "sample_size": _SAMPLE_SIZE_720P if model.patch_size == (1, 1, 1) else _SAMPLE_SIZE_480P,
        "patch_size": model.patch_size,
    }


def write_config(model: SanaVideoDiT, directory: Path) -> None:
    """``config.json`` of the network, which may be on meta."""
    with torch.device("meta"):
        twin = diffusers_class()(**diffusers_arguments(model))
    twin.save_config(directory)


@torch.no_grad()
def diffusers_velocity(directory: Path, latents: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    """Velocity (B, C, T, H, W) by diffusers' class, from a folder on disk, in fp32.

    Raises:
        ValueError: the folder's keys are not exactly the class's own.
    """
    twin, report = diffusers_class().from_pretrained(
        directory, torch_dtype=torch.float32, output_loading_info=True
    )
    found = {what: report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(found.values()):
        raise ValueError(f"diffusers does not take the keys of {directory}: {found}")
    timestep = MAX_TIMESTEP * t
    return twin(latents, context, timestep, encoder_attention_mask=mask, return_dict=False)[0]
