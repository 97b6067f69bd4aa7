"""The network that reads a procedural clip: what is where, cell by cell; then what the clip shows.

Legend: B clips, F frames, S shapes, N cells of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
from sana_train.evaluation.reader_backbone import STRIDE_PX, ReaderBackbone
from sana_train.evaluation.reader_tracks import (
    MAX_COUNT,
    count_log_p,
    presence_logit,
    relation_logits,
    tracks,
)

NUM_FRAMES = 16
SIZE_PX = 128
GRID = SIZE_PX // STRIDE_PX

# answers per shape; ``shape`` is presence
KEYED = {
    "shape": 2,
    "motion": len(MOTIONS),
    "colour": len(COLOURS),
    "texture": len(TEXTURES),
    "frequency": len(FREQUENCIES),
}
# answers per clip; ``count`` is one less than the number of objects
GLOBAL = {"count": MAX_COUNT, "relation": len(RELATIONS), "background": len(BACKGROUNDS)}
ATTRIBUTES = (*KEYED, *GLOBAL)
# answers per cell; the last ``shape`` is the backdrop
DENSE = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS),
    "texture": len(TEXTURES),
    "frequency": len(FREQUENCIES),
    "background": len(BACKGROUNDS),
}
_PATTERNS = ("texture", "frequency")
_LOOKS = ("colour", *_PATTERNS)  # read off the cells of a shape
_SURE = 0.3  # a cell less likely to show a shape is no part of it


@dataclass
class Sight:
    """What a clip's cells show.

    Attributes:
        features: (B, F*N, D), the wide ones.
        log_p: per entry of ``DENSE``, (B, F*N, classes).
    """

    features: Tensor
    log_p: dict[str, Tensor]


class ReaderNet(nn.Module):
    """Clips (B, 3, 16, 128, 128) -> logits per attribute: (B, S, classes) or (B, classes).

    Held-out clips pair colours with shapes and textures that training never shows with them. Colour is
    therefore read where neither is to be seen, off near features.

    Args:
        width: channels of the finest features; coarser ones have 2 and 3 times as many.
        num_blocks: residual blocks at each coarser level.
        hidden: width of the networks that answer for a whole clip.
    """

    def __init__(self, width: int = 32, num_blocks: int = 3, hidden: int = 128) -> None:
        super().__init__()
        self.backbone = ReaderBackbone(width, num_blocks, NUM_FRAMES)
        self.dense = nn.ModuleDict({name: nn.Conv2d(width, num, 1) for name, num in DENSE.items()})
        seen = width + sum(DENSE[name] for name in ("shape", *_PATTERNS))
        self.shape_head = _head(seen + 3, hidden, 1 + sum(DENSE[name] for name in _PATTERNS))
        self.background_head = _head(width, hidden, DENSE["background"])
        self.certainty = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(2.0)) for name in (*_LOOKS, "background")}
        )
        self.motion_head = MotionHead(hidden)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        return self.answer(self.look(video))

    def look(self, video: Tensor) -> Sight:
        """Features and log-probabilities of every cell."""
        if video.shape[1:] != (3, NUM_FRAMES, SIZE_PX, SIZE_PX):
            raise ValueError(
                f"the reader takes clips (B, 3, {NUM_FRAMES}, {SIZE_PX}, {SIZE_PX}), got {tuple(video.shape)}"
            )
        near, wide = self.backbone(rearrange(video, "b c f h w -> (b f) c h w"))
        logits = {name: head(near if name == "colour" else wide) for name, head in self.dense.items()}
        log_p = {name: _by_cell(value).float().log_softmax(dim=-1) for name, value in logits.items()}
        return Sight(_by_cell(wide), log_p)

    @staticmethod
    def masks(sight: Sight) -> Tensor:
        """(B, F, S, N) in [0, 1], without gradient: the cells that surely show a shape."""
        p = sight.log_p["shape"].detach()[..., :-1].exp()
        sure = (p - _SURE).clamp_min(0) / (1 - _SURE)
        return rearrange(sure, "b (f n) s -> b f s n", f=NUM_FRAMES)

    def answer(self, sight: Sight) -> dict[str, Tensor]:
        """Logits per attribute."""
        with torch.autocast(sight.features.device.type, enabled=False):
            masks = self.masks(sight)
            tracked = tracks(masks)
            masks = rearrange(masks, "b f s n -> b s (f n)")
            masks = masks / (masks.sum(dim=-1, keepdim=True) + 1)
            mean = {name: masks @ log_p for name, log_p in sight.log_p.items()}  # (B, S, classes)
            features = masks @ sight.features.float()  # (B, S, D)
            prior = presence_logit(tracked)
            total = prior.logsumexp(dim=1, keepdim=True)
            most = tracked[..., 2].amax(dim=-1)
            sizes = torch.stack([prior, prior - total, most], dim=-1)
            seen = [features, *(mean[name] for name in ("shape", *_PATTERNS)), sizes]
            learned = self.shape_head(torch.cat(seen, dim=-1))
            present = prior + learned[..., 0]
            logits = {
                "shape": torch.stack([-present / 2, present / 2], dim=-1),
                "motion": self.motion_head(tracked),
                **{name: self.certainty[name] * mean[name] for name in _LOOKS},
            }
            further = learned[..., 1:].split([DENSE[name] for name in _PATTERNS], dim=-1)
            for name, logit in zip(_PATTERNS, further, strict=True):
                logits[name] = logits[name] + logit
            presence = present.sigmoid()
            logits["count"] = count_log_p(presence)
            logits["relation"] = relation_logits(tracked, presence > 0.5, GRID)
            logits["background"] = self._background(sight)
        return logits

    def _background(self, sight: Sight) -> Tensor:
        free = sight.log_p["shape"].detach()[..., -1:].exp().transpose(1, 2)  # (B, 1, F*N)
        free = free / (free.sum(dim=-1, keepdim=True) + 1)
        features = (free @ sight.features.float())[:, 0]
        mean = (free @ sight.log_p["background"])[:, 0]
        return self.certainty["background"] * mean + self.background_head(features)


class MotionHead(nn.Module):
    """Tracks (B, S, F, 4) -> motion logits (B, S, classes): a shape's own path, and how others move to it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        own = 4 * NUM_FRAMES + 3
        self.own = nn.Linear(own, hidden)
        self.pair_own, self.pair_other = nn.Linear(own, hidden), nn.Linear(own, hidden, bias=False)
        self.pair_between = nn.Linear(2 * NUM_FRAMES, hidden, bias=False)
        self.pair_out = nn.Linear(hidden, hidden)
        self.head = _head(2 * hidden, hidden, len(MOTIONS))

    def forward(self, tracked: Tensor) -> Tensor:
        centre, size, visible = tracked[..., :2], tracked[..., 2], tracked[..., 3]
        middle, mean_size = centre.mean(dim=2, keepdim=True), size.mean(dim=2, keepdim=True)
        path = torch.cat(
            [
                4 * (centre - middle).flatten(2),
                2 * (size - mean_size),
                visible,
                middle.flatten(2),
                mean_size - 3,
            ],
            dim=-1,
        )
        between = 4 * (centre[:, None] - centre[:, :, None]).flatten(3)  # (B, S, other S, 2*F)
        pairs = self.pair_own(path)[:, :, None] + self.pair_other(path)[:, None] + self.pair_between(between)
        pairs = F.silu(self.pair_out(F.silu(pairs)))
        weight = presence_logit(tracked).sigmoid()[:, None, :, None]
        others = weight * (1 - torch.eye(tracked.shape[1], device=tracked.device))[..., None]
        return self.head(torch.cat([F.silu(self.own(path)), (others * pairs).sum(dim=2)], dim=-1))


def _by_cell(x: Tensor) -> Tensor:
    """(B*F, C, H, W) -> (B, F*H*W, C)."""
    return rearrange(x, "(b f) c h w -> b (f h w) c", f=NUM_FRAMES)


def _head(before: int, hidden: int, after: int) -> nn.Sequential:
    last = nn.Linear(hidden, after)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(before, hidden), nn.SiLU(), last)


def class_labels(attributes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ground truth of a batch as class indices of the heads, -1 = does not apply."""
    labels = {name: attributes[name] for name in ATTRIBUTES}
    return {**labels, "count": attributes["count"] - 1}


def cell_labels(attributes: Mapping[str, Tensor], cells: Tensor) -> dict[str, Tensor]:
    """Ground truth of cells (B, F, h, w) as class indices of ``DENSE``, (B, F*h*w), -1 = does not apply."""
    cells = cells.flatten(1)
    is_free = cells < 0
    shown = cells.clamp_min(0)
    labels = {"shape": torch.where(is_free, len(SHAPES), cells)}
    for name in _LOOKS:
        labels[name] = torch.where(is_free, -1, attributes[name].gather(1, shown))
    labels["background"] = torch.where(is_free, attributes["background"][:, None], -1)
    return labels
