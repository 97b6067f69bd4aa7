"""Named streams of uniform numbers, a row per scene."""

from __future__ import annotations

import torch
from torch import Tensor

from sana_train.utils.rng import SampleRng


class Stream:
    """Uniform numbers, a pure function of (seed, prefix, name, index); rows can be narrowed.

    Args:
        seed: the world's seed.
        prefix: of every name.
        index: (B,) int64 scene indices.
    """

    def __init__(self, seed: int, prefix: str, index: Tensor) -> None:
        self.seed, self.prefix, self.index = seed, prefix, index
        self._rng = SampleRng(seed, index)

    def __call__(self, name: str, *shape: int) -> Tensor:
        return self._rng.uniform(f"{self.prefix}/{name}", shape)

    def rows(self, which: Tensor) -> Stream:
        return Stream(self.seed, self.prefix, self.index[which])


def pick(uniform: Tensor, num_classes: int) -> Tensor:
    return (uniform * num_classes).to(torch.int64).clamp_max(num_classes - 1)
