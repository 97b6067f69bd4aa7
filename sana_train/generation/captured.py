"""A velocity whose kernels are launched together: captured once as a CUDA graph, then replayed.

An evaluation of a DiT launches hundreds of kernels. Where each takes little time, for short clips and small
networks, the GPU waits for the next; replaying a graph launches all of them at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sana_train.flow.samplers import Velocity


class CapturedVelocity:
    """Computes what ``velocity`` does, for inputs of one shape on one CUDA device, without gradients.

    The first call runs as it is, so that kernels are compiled and chosen; the second is captured. Whatever
    else ``velocity`` reads, such as prepared captions, must stay where it is; what it computes may not depend
    on values that the host reads. Memory of one evaluation is held as long as this object.

    Args:
        velocity: (latents (B, C, T, H, W), t (B,)) -> a tensor like the latents.
    """

    def __init__(self, velocity: Velocity) -> None:
        self._velocity = velocity
        self._warmed_up = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._output: Tensor | None = None

    def __call__(self, latents: Tensor, t: Tensor) -> Tensor:
        """The velocity, in memory of its own.

        Raises:
            ValueError: other shapes than those of the call that was captured.
        """
        if not self._warmed_up:
            self._warmed_up = True
            return self._velocity(latents, t)
        if self._graph is None or self._inputs is None:
            self._capture(latents, t)
        assert self._graph is not None and self._inputs is not None and self._output is not None
        for kept, given in zip(self._inputs, (latents, t), strict=True):
            if kept.shape != given.shape or kept.dtype != given.dtype:
                raise ValueError(
                    f"a captured velocity has inputs of {tuple(kept.shape)} in {kept.dtype}; "
                    f"{tuple(given.shape)} in {given.dtype} given: make another for those"
                )
            kept.copy_(given)
        self._graph.replay()
        return self._output.clone()

    def _capture(self, latents: Tensor, t: Tensor) -> None:
        inputs = (latents.clone(), t.clone())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self._velocity(*inputs)
        self._graph, self._inputs = graph, inputs
