"""A function of many small GPU kernels as one CUDA graph: its host's cost is a launch instead of hundreds.

A small model's step takes the host longer than the GPU. torch.compile makes the loss a graph; this is for
what must keep PyTorch's own kernels, to the last bit, around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sana_train.utils.rng import SampleRng

Shape = tuple[int, ...]
Function = Callable[[list[Tensor]], list[Tensor]]

# Numbers that a graph may work on. It keeps all of its memory for good, and larger work hides its launches.
MAX_NUMBERS = 2**24


class _Graph(NamedTuple):
    inputs: list[Tensor]
    outputs: list[Tensor]
    graph: torch.cuda.CUDAGraph


class Replayed:
    """``function``, on tensors of a GPU recorded at the first call of each list of shapes.

    What a call returns is written again by the next one, so it must be used up, or cloned, before.

    Args:
        function: of its tensors alone, without gradients, and without a wait for the GPU.
        max_graphs: lists of shapes that are recorded; those that come later are computed as they are.
    """

    def __init__(self, function: Function, max_graphs: int = 4) -> None:
        self.function = function
        self.max_graphs = max_graphs
        self._graphs: dict[tuple[tuple[torch.Size, torch.dtype, torch.device], ...], _Graph] = {}

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if not all(tensor.is_cuda for tensor in tensors):
            return self.function(list(tensors))
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        if key not in self._graphs:
            if len(self._graphs) == self.max_graphs:
                return self.function(list(tensors))
            self._graphs[key] = self._record(tensors)
        recorded = self._graphs[key]
        torch._foreach_copy_(recorded.inputs, list(tensors))
        recorded.graph.replay()
        return recorded.outputs

    def _record(self, tensors: Sequence[Tensor]) -> _Graph:
        inputs = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
        with torch.cuda.device(inputs[0].device):
            # A first run beside the stream that trains, in which libraries set themselves up.
            beside, training = torch.cuda.Stream(), torch.cuda.current_stream()
            beside.wait_stream(training)
            with torch.cuda.stream(beside):
                self.function(inputs)
            training.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: another may be copying batches meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outputs = self.function(inputs)
        return _Graph(inputs, outputs, graph)


class ReplayedDraws:
    """Makes a ``SampleRng`` per batch whose draws, the same numbers, are a launch each on a GPU.

    Args:
        seed: the run's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._draws: dict[tuple[str, str, tuple[int, ...]], Replayed] = {}

    def rng(self, ordinals: Tensor) -> SampleRng:
        """For the batch of ``ordinals`` (B,)."""
        return _ReplayedRng(self, ordinals) if ordinals.is_cuda else SampleRng(self.seed, ordinals)

    def draw(self, kind: Literal["uniform", "normal"], ordinals: Tensor, stream: str, shape: Shape) -> Tensor:
        """What the method ``kind`` of a ``SampleRng`` gives."""

        def drawn(tensors: list[Tensor]) -> list[Tensor]:
            return [getattr(SampleRng(self.seed, tensors[0]), kind)(stream, shape)]

        if len(ordinals) * math.prod(shape) > MAX_NUMBERS // 4:  # their counters have 8 bytes each
            return drawn([ordinals])[0]
        key = (kind, stream, shape)
        if key not in self._draws:
            self._draws[key] = Replayed(drawn)
        return self._draws[key]([ordinals])[0].clone()  # it may be asked for again while the first is in use


class _ReplayedRng(SampleRng):
    def __init__(self, draws: ReplayedDraws, ordinals: Tensor) -> None:
        super().__init__(draws.seed, ordinals)
        self._draws = draws

    def uniform(self, stream: str, shape: Shape = ()) -> Tensor:
        return self._draws.draw("uniform", self.ordinals, stream, shape)

    def normal(self, stream: str, shape: Shape = ()) -> Tensor:
        return self._draws.draw("normal", self.ordinals, stream, shape)
