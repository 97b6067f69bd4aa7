"""Linear self-attention with ReLU features and rotary numerator (SANA-Video, eq. 2).

Legend: B batch, N tokens, D width, A heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sana_train.models.layers.norms import RMSNorm
from sana_train.models.layers.numerics import Numerics
from sana_train.models.layers.rope import Rotation, rotate


class LinearAttention(nn.Module):
    """out_n = sum_m v_m <R k'_m, R q'_n> / (sum_m <k'_m, q'_n> + eps), q' = ReLU(q), k' = ReLU(k).

    The denominator is not rotated: rotated features may be negative and would let it reach zero.
    Queries and keys are RMS-normalised over the whole width, before the heads are split.
    """

    def __init__(self, width: int, num_heads: int, numerics: Numerics) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.numerics = numerics
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = RMSNorm(width, numerics.qk_eps)
        self.k_norm = RMSNorm(width, numerics.qk_eps)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Rotation) -> Tensor:
        """(B, N, D) -> (B, N, D); every token sees every token."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        heads = (self.num_heads, -1)
        query = self.q_norm(query).relu().unflatten(-1, heads)  # (B, N, A, E)
        key = self.k_norm(key).relu().unflatten(-1, heads)
        mixed = self._attend(query, key, value.unflatten(-1, heads), rope)
        return self.out(mixed.to(value.dtype).flatten(2))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, rope: Rotation) -> Tensor:
        """(B, N, A, E) each -> (B, N, A, E) float32.

        Products are of float32 tensors and add up in float32. Their factors keep 10 bits of mantissa
        where CUDA may use TF32, as ``torch.set_float32_matmul_precision("high")`` allows.
        """
        ambient = query.dtype
        rounded = self.numerics.use_ambient_rounding
        # Both references compute the reciprocal outside their float32 part, so autocast has its say here.
        scale = 1 / (_similarity(query, key) + self.numerics.attention_eps) if rounded else None
        device = "cpu" if query.is_meta else query.device.type  # autocast does not know meta
        with torch.autocast(device, enabled=False):
            turned_query, turned_key = rotate(query, rope), rotate(key, rope)
            if rounded:
                turned_query, turned_key = turned_query.to(ambient), turned_key.to(ambient)
            summary = torch.einsum("bnae,bnaf->baef", turned_key.float(), value.float())
            numerator = torch.einsum("bnae,baef->bnaf", turned_query.float(), summary)
            if scale is not None:
                return numerator * scale
            return numerator / (_similarity(query.float(), key.float()) + self.numerics.attention_eps)


def _similarity(query: Tensor, key: Tensor) -> Tensor:
    """sum_m <key_m, query_n>: (B, N, A, 1)."""
    return torch.einsum("bnae,bae->bna", query, key.sum(dim=1)).unsqueeze(-1)
