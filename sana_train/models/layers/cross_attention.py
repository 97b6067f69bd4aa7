"""Softmax attention of video tokens to caption tokens.

Legend: B batch, N video tokens, S caption tokens, D width, A heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sana_train.models.layers.norms import RMSNorm


class CrossAttention(nn.Module):
    """Queries and keys are RMS-normalised over the whole width, before the heads are split."""

    def __init__(self, width: int, num_heads: int, qk_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = RMSNorm(width, qk_eps)
        self.k_norm = RMSNorm(width, qk_eps)
        self.out = nn.Linear(width, width)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> (B, S, D) normalised keys and values of a caption."""
        key, value = self.kv(context).chunk(2, dim=-1)
        return self.k_norm(key), value

    def forward(self, x: Tensor, caption: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """(B, N, D), keys and values (B, S, D), additive bias (B, 1, 1, S) -> (B, N, D)."""
        query, key, value = (
            rearrange(part, "b n (a e) -> b a n e", a=self.num_heads)
            for part in (self.q_norm(self.q(x)), *caption)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.out(rearrange(mixed, "b a n e -> b n (a e)"))
