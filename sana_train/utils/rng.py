"""Randomness from counters: a value is a pure function of (seed, stream, ordinal, element).

No generator state exists, so a run gives the same noise on any number of ranks, workers or
accumulation steps, after any resume, and on any device (up to the last bits of log and cos).
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_MIX_A = -4658895280553007687  # 0xBF58476D1CE4E5B9 as int64 (splitmix64)
_MIX_B = -7723592293110705685  # 0x94D049BB133111EB
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele, Lea and Flood 2014); int64 products wrap."""
    x = (x ^ _shift_right(x, 30)) * _MIX_A
    x = (x ^ _shift_right(x, 27)) * _MIX_B
    return x ^ _shift_right(x, 31)


def stream_key(seed: int, stream: str) -> int:
    """A signed 64-bit key for a named stream of a seed."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def hash64(values: Tensor, key: Tensor | int) -> Tensor:
    """A keyed hash of int64 values, elementwise: well-mixed int64 of the same shape."""
    return _mix(values * _GOLDEN + key)


class SampleRng:
    """Per-sample randomness for one batch.

    Args:
        seed: the run's seed.
        ordinals: (B,) int64, how many samples the run had drawn before each of these.
    """

    def __init__(self, seed: int, ordinals: Tensor) -> None:
        self.seed = seed
        self.ordinals = ordinals

    def _bits(self, stream: str, num_elements: int) -> Tensor:
        """(B, num_elements) well-mixed int64."""
        base = _mix(self.ordinals * _GOLDEN + stream_key(self.seed, stream))
        element = torch.arange(1, num_elements + 1, device=base.device, dtype=torch.int64)
        return _mix(base[:, None] + element[None, :] * _GOLDEN)

    def uniform(self, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) float32 in the open interval (0, 1)."""
        bits = self._bits(stream, math.prod(shape))
        value = (_shift_right(bits, 41).to(torch.float32) + 0.5) * 2.0**-23
        return value.reshape(-1, *shape)

    def normal(self, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) standard normal float32 (Box and Muller)."""
        num_elements = math.prod(shape)
        half = (num_elements + 1) // 2
        bits = self._bits(stream, half)
        radius_u = (_shift_right(bits, 32).to(torch.float64) + 0.5) * 2.0**-32
        angle_u = (bits & 0xFFFFFFFF).to(torch.float64) * 2.0**-32
        radius = torch.sqrt(-2.0 * torch.log(radius_u.float().clamp_max(1.0 - 2.0**-24)))
        angle = (2.0 * math.pi) * angle_u.float()
        value = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return value[:, :num_elements].reshape(-1, *shape)
