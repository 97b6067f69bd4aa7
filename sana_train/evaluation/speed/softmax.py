"""The DiT with softmax attention in the place of linear attention: a cost that grows as length squared.

Legend: B batch, N tokens, D width, A heads, E head width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sana_train.models.layers.linear_attention import LinearAttention
from sana_train.models.layers.rope import Rotation, rotate
from sana_train.models.sana_video import SanaVideoBlock, SanaVideoDiT


class SoftmaxAttention(nn.Module):
    """Self-attention of the same width, heads, norms and rotation; only here, so no preset can name it."""

    def __init__(self, linear: LinearAttention) -> None:
        super().__init__()
        self.num_heads = linear.num_heads
        self.qkv, self.q_norm, self.k_norm, self.out = linear.qkv, linear.q_norm, linear.k_norm, linear.out

    def forward(self, x: Tensor, rope: Rotation) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in self._projected(x))
        query, key = (rotate(part, rope).to(value.dtype) for part in (query, key))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # (B, A, N, E)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.q_norm(query), self.k_norm(key), value


def put_softmax_in_place(model: SanaVideoDiT) -> None:
    """Every block of ``model``, which must have ``kernels=reference``, attends by softmax from now on."""
    for block in model.blocks:
        assert isinstance(block, SanaVideoBlock)
        block.self_attn = SoftmaxAttention(block.self_attn)  # type: ignore[assignment]
