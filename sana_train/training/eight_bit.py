"""AdamW whose moments are held in 8 bits, by bitsandbytes: 2 bytes a parameter where AdamW takes 8.

T. Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2021). Tensors of fewer than 4,096 numbers
keep moments in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_MIN_NUMBERS, _BLOCK, _TABLE_BYTES = 4096, 256, 1024


def missing_bitsandbytes() -> str | None:
    """Why there is no 8-bit AdamW here, and what to do; None if there is."""
    if importlib.util.find_spec("bitsandbytes") is not None:
        return None
    return (
        "training.optimiser=adamw_8bit needs bitsandbytes, which is not installed: "
        "pip install -c constraints.txt -e '.[eight_bit]', or take training.optimiser=adamw"
    )


def build_adamw_8bit(
    groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float, eps: float
) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW8bit.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    if (missing := missing_bitsandbytes()) is not None:
        raise ValueError(missing)
    from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found] # an extra

    return AdamW8bit(
        groups, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps, min_8bit_size=_MIN_NUMBERS
    )


def state_bytes(parameters: Iterable[Tensor]) -> int:
    """What it keeps for ``parameters``, counted without the library."""
    total = 2 * _TABLE_BYTES  # of the codes, one table a moment
    for parameter in parameters:
        numel = parameter.numel()
        total += 8 * numel if numel < _MIN_NUMBERS else 2 * (numel + 4 * -(-numel // _BLOCK))
    return total
