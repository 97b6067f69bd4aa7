"""A block of SANA-Video from fused kernels: the reference's arithmetic, weights and keys, in fewer passes.

Legend: B batch, N tokens, S caption tokens, D width, F noise times per clip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sana_train.models.kernels.functions import (
    CrossAttentionFunction,
    GatedConvLinear,
    GatedLinear,
    GatedTemporal,
    LinearAttentionFunction,
    LinearModulatedLinear,
    ModulatedLinear,
)
from sana_train.models.kernels.weights import forget
from sana_train.models.kernels.weights import rounded as rounded_weight
from sana_train.models.layers.recompute import is_computed_again
from sana_train.models.layers.rope import Rotation

if TYPE_CHECKING:
    from sana_train.models.sana_video import SanaVideoBlock


def fused_block(
    block: SanaVideoBlock,
    x: Tensor,
    table: Tensor,
    caption: tuple[Tensor, Tensor],
    mask: Tensor,
    rope: Rotation,
    grid: tuple[int, int, int],
    dtype: torch.dtype,
    is_sampling: bool,
) -> Tensor:
    """As ``SanaVideoBlock``: (B, N, D) -> (B, N, D), in the dtype that x and the table promote to.

    Args:
        block: whose weights.
        x: (B, N, D).
        table: (B, F, 6, D), shifts, scales and gates.
        caption: keys and values from ``CrossAttention.keys_and_values``, (B, S, D) each.
        mask: (B, S) bool, whose True come first; a clip without any attends evenly to all.
        rope: of the tokens.
        grid: (T, H, W).
        dtype: of matrix products.
        is_sampling: whether no gradients are wanted and the weights stay: then they are rounded once.
    """

    def prepared(layer: nn.Linear) -> Tensor:
        if torch.compiler.is_compiling():
            return layer.weight  # a graph may not depend on what is kept beside it
        if is_sampling:
            return rounded_weight(layer.weight, dtype)
        forget(layer.weight)
        # Where no gradients are wanted, nothing is kept for them.
        return layer.weight if torch.is_grad_enabled() else layer.weight.detach()

    frames, height, width = grid
    batch, num_tokens, _ = x.shape
    table = table.flatten(0, 1)  # (B F, 6, D)
    attn_shift, attn_scale, attn_gate, ffn_shift, ffn_scale, ffn_gate = table.unbind(1)
    key, value = caption
    attn, cross, ffn = block.self_attn, block.cross_attn, block.ffn
    lengths = mask.sum(1, dtype=torch.int32)
    lengths = torch.where(lengths == 0, mask.shape[1], lengths)
    rows = x.to(torch.promote_types(x.dtype, table.dtype)).flatten(0, 1)  # (B N, D)

    qkv, rows = ModulatedLinear.apply(rows, attn_shift, attn_scale, prepared(attn.qkv), dtype)
    mixed = LinearAttentionFunction.apply(
        qkv.unflatten(0, (batch, num_tokens)), attn.q_norm.weight, attn.k_norm.weight,
        rope.cos.squeeze(1), rope.sin.squeeze(1), attn.num_heads, attn.q_norm.eps,
        attn.numerics.attention_eps,
    )  # fmt: skip
    rows, rounded = GatedLinear.apply(
        rows, mixed.flatten(0, 1), prepared(attn.out), attn.out.bias, attn_gate, True
    )
    mixed = CrossAttentionFunction.apply(
        rounded.unflatten(0, (batch, num_tokens)), prepared(cross.q), cross.q.bias, cross.q_norm.weight,
        key.to(dtype), value.to(dtype), lengths, cross.num_heads, cross.q_norm.eps,
    )  # fmt: skip
    expanded, rows = LinearModulatedLinear.apply(
        rows, mixed.flatten(0, 1), prepared(cross.out), cross.out.bias, ffn_shift, ffn_scale,
        prepared(ffn.expand),
    )  # fmt: skip
    projected = GatedConvLinear.apply(
        expanded,
        ffn.expand.bias,
        ffn.depthwise.weight,
        ffn.depthwise.bias,
        prepared(ffn.project),
        height,
        width,
    )
    projected = projected.view(batch, frames, height * width, -1)
    rows = GatedTemporal.apply(rows, projected, prepared(ffn.temporal), ffn_gate, not is_computed_again())
    return rows.view(batch, num_tokens, -1)
