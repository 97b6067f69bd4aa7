"""Weighted sources: every part of a run's stream holds each of them in its share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sana_train.data.interleave import Interleave
from sana_train.data.joined import JoinedClips
from sana_train.data.order import Order
from sana_train.protocols import ClipSource


class MixtureClips(JoinedClips):
    """Several sources of clips of one size, drawn from by weight.

    A sample's source is a pure function of (weights, seed, ordinal), and any stretch of the stream has the
    shares of the weights (``data/interleave.py``). Each source goes through epochs of its own, whatever their
    sizes: nothing of it is skipped or comes twice in one.

    Args:
        sources: by name.
        weights: share of each in the stream, in any unit; 3 and 1 are three quarters and one.

    Raises:
        ValueError: weights for other names than the sources have, or not above 0.
    """

    def __init__(self, sources: Mapping[str, ClipSource], weights: Mapping[str, float]) -> None:
        super().__init__(sources)
        if sources.keys() != weights.keys():
            raise ValueError(
                f"the sources {', '.join(sources)} need a weight each, got weights of {', '.join(weights)}"
            )
        not_positive = [f"{name}: {weight:g}" for name, weight in weights.items() if not weight > 0]
        if not_positive:
            raise ValueError(
                f"weights are above 0, got {'; '.join(not_positive)}; leave a source out instead"
            )
        self.weights = [float(weights[name]) for name in self.members]


class MixtureOrder:
    """The order of ``MixtureClips``.

    Args:
        seed: of the run.
        weights: of the members.
        orders: of the members.
        starts: the first clip id of each.
    """

    def __init__(
        self, seed: int, weights: Sequence[float], orders: Sequence[Order], starts: Sequence[int]
    ) -> None:
        self._turns = Interleave(weights, seed, "data/mixture")
        self._orders, self._starts = list(orders), list(starts)

    def __call__(self, ordinals: Tensor) -> Tensor:
        member, number = self._turns(ordinals)
        clips = torch.empty_like(ordinals)
        for which, (order, start) in enumerate(zip(self._orders, self._starts)):
            mine = (member == which).nonzero().flatten()
            if len(mine):
                clips[mine] = start + order(number[mine])
        return clips
