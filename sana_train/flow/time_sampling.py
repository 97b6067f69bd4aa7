"""Which times are trained on: samplers of t in [0, 1] (1 = noise) from per-sample counters.

A flow shift s > 1 moves times towards noise, t -> s t / (1 + (s - 1) t): large latents keep more of
their signal at a given t, so the interesting part of the path lies later. SANA-Video trains with 3.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from sana_train.utils.rng import SampleRng

_Time = TypeVar("_Time", float, Tensor)
_STREAM = "time"


def shift_time(t: _Time, shift: float) -> _Time:
    """Flow shift; keeps 0 and 1, and ``shift_time(shift_time(t, a), b) == shift_time(t, a * b)``."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def check_shift(shift: float) -> None:
    if not shift > 0.0:
        raise ValueError(f"the flow shift must be positive, got {shift}; 1 leaves times as they are")


class TimeSampler(Protocol):
    """Draws one time per sample."""

    def sample(self, rng: SampleRng) -> Tensor:
        """(B,) float32 in [0, 1]."""
        ...


class Uniform:
    """Times uniform in (0, 1), then shifted.

    Args:
        shift: flow shift, above 0.
    """

    def __init__(self, shift: float = 1.0) -> None:
        check_shift(shift)
        self.shift = shift

    def sample(self, rng: SampleRng) -> Tensor:
        """(B,) float32 in [0, 1]."""
        return shift_time(rng.uniform(_STREAM), self.shift)


class LogitNormal:
    """Times with logit(t) ~ N(mean, std^2), then shifted (Esser et al. 2024).

    Args:
        mean: mean of logit(t) before the shift.
        std: standard deviation of logit(t), above 0.
        shift: flow shift, above 0; it adds log(shift) to the mean.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, shift: float = 3.0) -> None:
        if not std > 0.0:
            raise ValueError(f"the standard deviation of logit(t) must be positive, got {std}")
        check_shift(shift)
        self.mean = mean
        self.std = std
        self.shift = shift

    def sample(self, rng: SampleRng) -> Tensor:
        """(B,) float32 in [0, 1]."""
        return shift_time(torch.sigmoid(self.mean + self.std * rng.normal(_STREAM)), self.shift)
