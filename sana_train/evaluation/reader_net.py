"""The network that reads a procedural clip: features of frames, then one question per shape.

Legend: B clips, F frames, S shapes, Q questions, T/H/W feature grid, N = T*H*W features, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sana_train.data.world.scene import (
    BACKGROUNDS,
    COLOURS,
    FREQUENCIES,
    MOTIONS,
    RELATIONS,
    SHAPES,
    TEXTURES,
)

NUM_FRAMES = 16
SIZE_PX = 128

# answers per shape; ``shape`` is presence
KEYED = {
    "shape": 2,
    "motion": len(MOTIONS),
    "colour": len(COLOURS),
    "texture": len(TEXTURES),
    "frequency": len(FREQUENCIES),
}
# answers per clip; ``count`` is one less than the number of objects
GLOBAL = {"count": 3, "relation": len(RELATIONS), "background": len(BACKGROUNDS)}
ATTRIBUTES = (*KEYED, *GLOBAL)


class ReaderNet(nn.Module):
    """Clips (B, 3, 16, 128, 128) -> logits per attribute: (B, S, classes) or (B, classes).

    Args:
        width: channels of the finest features; coarser ones have 2 and 4 times as many.
        num_blocks: residual blocks at the coarsest level.
        num_decoder_layers: rounds of attention from questions to features.
    """

    def __init__(self, width: int = 32, num_blocks: int = 2, num_decoder_layers: int = 3) -> None:
        super().__init__()
        dim = 4 * width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            _norm(width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            _norm(2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            _norm(2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, dim, 3, stride=2, padding=1),
        )
        self.blocks = nn.ModuleList(_SpaceTimeBlock(dim) for _ in range(num_blocks))
        self.halve_time = nn.Conv2d(dim, dim, (2, 1), stride=(2, 1))
        self.norm = nn.LayerNorm(dim)
        side = SIZE_PX // 8
        self.place_t = nn.Parameter(0.02 * torch.randn(NUM_FRAMES // 2, 1, 1, dim))
        self.place_h = nn.Parameter(0.02 * torch.randn(1, side, 1, dim))
        self.place_w = nn.Parameter(0.02 * torch.randn(1, 1, side, dim))
        self.questions = nn.Parameter(torch.randn(len(SHAPES) + len(GLOBAL), dim))
        self.decoder = nn.ModuleList(_DecoderLayer(dim) for _ in range(num_decoder_layers))
        self.answer_norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, n) for name, n in {**KEYED, **GLOBAL}.items()})

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        if video.shape[1:] != (3, NUM_FRAMES, SIZE_PX, SIZE_PX):
            raise ValueError(
                f"the reader takes clips (B, 3, {NUM_FRAMES}, {SIZE_PX}, {SIZE_PX}), got {tuple(video.shape)}"
            )
        features = self.features(video)  # (B, N, D)
        answers = self.questions.expand(len(video), -1, -1)  # (B, Q, D)
        for layer in self.decoder:
            answers = layer(answers, features)
        answers = self.answer_norm(answers)
        shapes = answers[:, : len(SHAPES)]
        logits = {name: self.heads[name](shapes) for name in KEYED}
        for i, name in enumerate(GLOBAL):
            logits[name] = self.heads[name](answers[:, len(SHAPES) + i])
        return logits

    def features(self, video: Tensor) -> Tensor:
        """(B, N, D), every feature knowing its place and time."""
        x = self.stem(rearrange(video, "b c f h w -> (b f) c h w"))
        for block in self.blocks:
            x = block(x)
        side = x.shape[-1]
        x = self.halve_time(rearrange(x, "(b f) c h w -> b c f (h w)", f=NUM_FRAMES))
        x = self.norm(rearrange(x, "b c t (h w) -> b t h w c", h=side))
        return (x + self.place_t + self.place_h + self.place_w).flatten(1, 3)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class _SpaceTimeBlock(nn.Module):
    """A 3x3 convolution in space, then one over 3 frames, around a skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_space, self.norm_time = _norm(dim), _norm(dim)
        self.space = nn.Conv2d(dim, dim, 3, padding=1)
        self.time = nn.Conv2d(dim, dim, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """(B*F, D, H, W) -> same."""
        hidden = F.silu(self.norm_time(self.space(F.silu(self.norm_space(x)))))
        hidden = self.time(rearrange(hidden, "(b f) c h w -> b c f (h w)", f=NUM_FRAMES))
        return x + rearrange(hidden, "b c f (h w) -> (b f) c h w", h=x.shape[-2])


class _DecoderLayer(nn.Module):
    """Questions look at the clip, then at each other."""

    def __init__(self, dim: int, head_dim: int = 32) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm_look, self.norm_talk, self.norm_think = (nn.LayerNorm(dim) for _ in range(3))
        self.look_q, self.look_kv, self.look_out = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(dim, dim),
        )
        self.talk_qkv, self.talk_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.think = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, answers: Tensor, features: Tensor) -> Tensor:
        """(B, Q, D), (B, N, D) -> (B, Q, D)."""
        query = self.look_q(self.norm_look(answers))
        key, value = self.look_kv(features).chunk(2, dim=-1)
        answers = answers + self.look_out(self._attend(query, key, value))
        query, key, value = self.talk_qkv(self.norm_talk(answers)).chunk(3, dim=-1)
        answers = answers + self.talk_out(self._attend(query, key, value))
        return answers + self.think(self.norm_think(answers))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (
            rearrange(x, "b n (h d) -> b h n d", d=self.head_dim) for x in (query, key, value)
        )
        return rearrange(F.scaled_dot_product_attention(query, key, value), "b h n d -> b n (h d)")


def class_labels(attributes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ground truth of a batch as class indices of the heads, -1 = does not apply."""
    labels = {name: attributes[name] for name in ATTRIBUTES}
    return {**labels, "count": attributes["count"] - 1}
