"""Exponential moving average of the weights, in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sana_train.utils.shards import local, write_part


class Ema:
    """fp32 average of a module's parameters, sharded as they are; buffers are taken as they are.

    The decay at step n is ``min(decay, (1 + n) / (10 + n))``: a fixed decay of 0.999 would still be
    half the initialisation after 700 steps, and the first milestones would measure that.

    Args:
        model: the module whose parameters are averaged.
        decay: the decay reached in the long run, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"training.ema_decay is {decay}; expected a number in [0, 1), e.g. 0.999")
        self.decay = decay
        self._model = model
        self.average: dict[str, Tensor] = {
            name: parameter.detach().float().clone() for name, parameter in model.named_parameters()
        }
        self._parameters = list(model.parameters())  # to look for them in every step takes a millisecond

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the weights reached after ``step`` optimiser steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [local(parameter).float() for parameter in self._parameters]
        torch._foreach_lerp_([local(average) for average in self.average.values()], current, 1.0 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state dict with averaged parameters (fp32)."""
        state = {name: tensor.detach() for name, tensor in self._model.state_dict().items()}
        return {**state, **self.average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over averages saved by ``state_dict``, whole also where this process has a part of each."""
        for name, average in self.average.items():
            write_part(average, state[name])

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model computes with the averages inside the block."""
        with torch.no_grad():
            kept = {name: parameter.detach().clone() for name, parameter in self._model.named_parameters()}
            try:
                for name, parameter in self._model.named_parameters():
                    parameter.copy_(self.average[name])
                yield
            finally:
                for name, parameter in self._model.named_parameters():
                    parameter.copy_(kept[name])
