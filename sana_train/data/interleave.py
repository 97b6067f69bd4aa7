"""Taking turns by weight: which of several streams the n-th item comes from, and its number there.

A pure function of (weights, seed, n), without a table or a state. Two streams take turns as the digits of
a rotation by their share do: of the first n items floor(n * share + phase) are the first stream's. More than
two are halves of halves, a binary tree. So in *any* stretch of L items each stream has its share of L, up to
the depth of the tree, and every stream is counted without a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sana_train.utils.rng import stream_key

_ONE = 1 << 24  # shares are multiples of 6e-8; items are counted up to 2**39


@dataclass(frozen=True)
class _Node:
    """Streams ``first`` .. ``middle`` - 1 against ``middle`` .. ``stop`` - 1."""

    first: int
    middle: int
    stop: int
    share: int  # of the first half, in units of 1 / _ONE
    phase: int

    def before(self, items: Tensor) -> Tensor:
        """How many of the first ``items`` are the first half's."""
        return (items * self.share + self.phase) >> 24


class Interleave:
    """Streams that take turns.

    Args:
        weights: share of each stream, in any unit.
        seed: where in its cycle each turn-taking begins.
        name: of the random stream that says so.

    Raises:
        ValueError: no streams, or a weight that is not above 0.
    """

    def __init__(self, weights: Sequence[float], seed: int, name: str) -> None:
        if not weights or not all(0.0 < weight < float("inf") for weight in weights):
            raise ValueError(f"streams take turns by weights above 0, got {list(weights)}")
        self.num_streams = len(weights)
        self._nodes: list[_Node] = []
        pending = [(0, len(weights))]
        while pending:
            first, stop = pending.pop()
            if stop - first == 1:
                continue
            middle = (first + stop) // 2
            share = sum(weights[first:middle]) / sum(weights[first:stop])
            phase = stream_key(seed, f"{name}/{first}-{stop}") % _ONE
            units = min(max(round(share * _ONE), 1), _ONE - 1)
            self._nodes.append(_Node(first, middle, stop, units, phase))
            pending += [(first, middle), (middle, stop)]

    def __call__(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Streams (B,) of the ``items`` (B,) int64, and the number of each in its own stream."""
        stream, number = torch.zeros_like(items), items.clone()
        for node in self._nodes:  # parents come before their children
            at = (stream == node.first).nonzero().flatten()
            before = node.before(number[at])
            is_first = node.before(number[at] + 1) > before
            stream[at] = torch.where(is_first, node.first, node.middle)
            number[at] = torch.where(is_first, before, number[at] - before)
        return stream, number

    def counts(self, items: Tensor) -> Tensor:
        """How many of the first ``items`` (B,) each stream has: (streams, B) int64."""
        counts = {(0, self.num_streams): items}
        for node in self._nodes:
            total = counts.pop((node.first, node.stop))
            counts[node.first, node.middle] = before = node.before(total)
            counts[node.middle, node.stop] = total - before
        return torch.stack([counts[stream, stream + 1] for stream in range(self.num_streams)])
