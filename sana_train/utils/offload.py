"""Frozen networks that wait in host memory and are on the device while they compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

_Place = tuple[nn.Module, str, Tensor]  # a module, its tensor's name, the tensor


class OnTurn:
    """``with OnTurn(network, device):`` - its weights are on the device inside, and on the host again after.

    Only copies travel, one way: what lies on the host stays there, so nothing is copied back.

    Args:
        network: frozen, on the host; changes made to its weights inside are lost.
        device: where it computes.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        self._resting = list(_tensors(network.modules()))

    def __enter__(self) -> None:
        for module, name, tensor in self._resting:
            _put(module, name, tensor.to(self.device))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, name, tensor in self._resting:
            _put(module, name, tensor)


def take_turns(network: nn.Module, blocks: nn.ModuleList, device: torch.device) -> None:
    """Put ``network`` on the device for good but for its ``blocks``, each of which comes when it is called.

    Memory of one block instead of all, for their transfer at each call.
    """
    inside = set(blocks.modules())
    for module, name, tensor in list(_tensors(each for each in network.modules() if each not in inside)):
        _put(module, name, tensor.to(device))
    for block in blocks:
        turn = OnTurn(block, device)
        block.register_forward_pre_hook(lambda *_, turn=turn: turn.__enter__())
        block.register_forward_hook(_leaving(turn), always_call=True)


def _leaving(turn: OnTurn) -> Any:
    return lambda *_: turn.__exit__(None, None, None)


def _tensors(modules: Iterable[nn.Module]) -> Iterator[_Place]:
    for module in modules:
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield module, name, value


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """In the place of the parameter or buffer of this name."""
    if isinstance(getattr(module, name), nn.Parameter) and not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    setattr(module, name, tensor)
