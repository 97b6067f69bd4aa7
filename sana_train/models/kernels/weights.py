"""Weights in the dtype of matrix products, kept between the steps of a sampler.

A training step rounds each weight once and uses it once, so there is nothing to keep.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_kept = WeakTensorKeyDictionary()  # of a weight: what it was when it was rounded, and the result


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight`` in ``dtype`` without gradients; the same tensor every time until the weight changes.

    Changes in place are seen by autograd's count of them, so weights whose storage others fill (shards while
    they are gathered) must not come here.
    """
    if weight.dtype == dtype:
        return weight.detach()
    state = (dtype, weight.data_ptr(), weight._version)
    known = _kept.get(weight)
    if known is None or known[0] != state:
        _kept[weight] = known = (state, weight.detach().to(dtype))
    return known[1]


def forget(weight: Tensor) -> None:
    """Give back the memory of what was kept for ``weight``."""
    _kept.pop(weight, None)
