"""Memory on meta, and how large a tensor a convolution sees."""

from __future__ import annotations

from typing import Any

import torch

from sana_train.utils import live_bytes


class LiveBytes(live_bytes.LiveBytes):
    """Counts, and keeps the size of the largest tensor that a convolution read or wrote.

    Attributes:
        largest: numbers in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.convolution.default:
            self.largest = max(self.largest, args[0].numel(), result.numel())
        return result
