"""Exact matrix FLOPs of SANA-Video, forward and in training, for MFU.

Two per multiply-add of every linear, convolution and attention product, as a FLOP counter counts;
norms, activations and rotations are left out.

Legend: N video tokens, S caption tokens, D width, M hidden width of the Mix-FFN, E head width.
"""

from __future__ import annotations

import math

from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT

_DEPTHWISE_TAPS = 9


def forward_flops(model: SanaVideoDiT, grid: tuple[int, int, int], num_context: int) -> int:
    """FLOPs of one sample through ``prepare`` and ``forward``.

    Args:
        model: gives the widths; may be on meta.
        grid: latent (T, H, W) before patching.
        num_context: padded caption length S.
    """
    num_tokens = _num_tokens(model, grid)
    width, caption_dim = model.caption_embed.fc1.weight.shape
    time_embed = model.time_embed.fc1.weight.numel() + model.time_embed.fc2.weight.numel()
    per_sample = time_embed + model.time_modulation.weight.numel()
    per_context = caption_dim * width + width * width
    per_token = model.patch_embed.weight.numel() + model.final_layer.linear.weight.numel()
    total = per_sample + num_context * per_context + num_tokens * per_token
    return 2 * (total + len(model.blocks) * _block_multiplies(model, width, num_tokens, num_context))


def training_flops(model: SanaVideoDiT, grid: tuple[int, int, int], num_context: int) -> int:
    """FLOPs of one sample, forward and backward, with every parameter trained, as ``forward_flops``.

    A product costs two more of its size in the backward pass, one for each factor's gradient; but latents,
    captions and time features need none, which saves one product in each of the three first layers.
    """
    per_context, per_sample = model.caption_embed.fc1.weight.numel(), model.time_embed.fc1.weight.numel()
    per_token = model.patch_embed.weight.numel()
    saved = _num_tokens(model, grid) * per_token + num_context * per_context + per_sample
    return 3 * forward_flops(model, grid, num_context) - 2 * saved


def recomputed_flops(
    model: SanaVideoDiT, grid: tuple[int, int, int], num_context: int, policy: Recompute
) -> int:
    """FLOPs of one sample for what its blocks did not keep for the backward pass, as ``forward_flops``."""
    if policy == "none":
        return 0
    width, num_tokens = model.caption_embed.fc1.weight.shape[0], _num_tokens(model, grid)
    hidden = int(model.mlp_ratio * width)
    linear_attention = 2 * width * model.head_dim + width
    block = num_tokens * (linear_attention + 2 * hidden * _DEPTHWISE_TAPS)
    if policy == "full":
        block = _block_multiplies(model, width, num_tokens, num_context)
    return 2 * len(model.blocks) * block


def _num_tokens(model: SanaVideoDiT, grid: tuple[int, int, int]) -> int:
    return math.prod(size // patch for size, patch in zip(grid, model.patch_size, strict=True))


def _block_multiplies(model: SanaVideoDiT, width: int, num_tokens: int, num_context: int) -> int:
    """Multiply-adds of one block for one sample."""
    hidden = int(model.mlp_ratio * width)
    # qkv and out, then summary, numerator and denominator
    linear_attention = 4 * width**2 + 2 * width * model.head_dim + width
    cross_attention = 2 * width**2 + 2 * num_context * width  # q, out; scores and their values
    mix_ffn = 2 * hidden * width + 2 * hidden * _DEPTHWISE_TAPS + hidden * width + 3 * width**2
    return num_tokens * (linear_attention + cross_attention + mix_ffn) + num_context * 2 * width**2
