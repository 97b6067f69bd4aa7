"""The times a sampler visits, from noise to clean: float64 on the CPU, strictly decreasing.

On the straight path sigma, the share of noise, is t itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from sana_train.flow.time_sampling import check_shift, shift_time


class SigmaSchedule(Protocol):
    """A grid of times."""

    def sigmas(self) -> Tensor:
        """(num_steps + 1,) float64, strictly decreasing in [0, 1]."""
        ...


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Refuse what no sampler can walk.

    Raises:
        ValueError: fewer than two times, a time outside [0, 1], or times that do not decrease.
    """
    decreasing = all(later < earlier for earlier, later in pairwise(sigmas))
    if len(sigmas) < 2 or not decreasing or sigmas[0] > 1.0 or sigmas[-1] < 0.0:
        raise ValueError(
            f"sigmas are {[round(sigma, 6) for sigma in sigmas]}; expected at least two strictly "
            "decreasing values in [0, 1], noise (1) first and clean latents (0) last"
        )


class ShiftedLinear:
    """Equal steps from 1 to 0, then shifted towards noise. SANA-Video samples with 50 and 8.

    Args:
        num_steps: steps of the sampler.
        shift: flow shift, above 0; 1 keeps the steps equal.
    """

    def __init__(self, num_steps: int = 50, shift: float = 8.0) -> None:
        if num_steps < 1:
            raise ValueError(f"a schedule needs at least one step, got num_steps={num_steps}")
        check_shift(shift)
        self.num_steps = num_steps
        self.shift = shift

    def sigmas(self) -> Tensor:
        """(num_steps + 1,) float64 from 1 to 0."""
        linear = torch.linspace(1.0, 0.0, self.num_steps + 1, dtype=torch.float64)
        return shift_time(linear, self.shift)


class CustomSigmas:
    """A list given by hand, such as a distilled model's.

    Args:
        values: strictly decreasing in [0, 1]. A list that does not begin at 1 continues from partly
            noised latents, one that does not end at 0 leaves noise in.
    """

    def __init__(self, values: list[float]) -> None:
        check_sigmas(values)
        self.values = values

    def sigmas(self) -> Tensor:
        """(len(values),) float64."""
        return torch.tensor(self.values, dtype=torch.float64)
