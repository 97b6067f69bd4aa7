"""Muon: momentum whose matrices are made nearly orthogonal, with AdamW for everything that is no matrix.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the size of a step is
that of Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982), so one learning rate serves
both halves. ``torch.optim.Muon`` refuses convolutions, which are most of an autoencoder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MIN_SIDE = 16  # tables, depthwise kernels and kernels on colours are no matrices worth the name
_STEPS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at 0: after five steps singular values lie in about 0.7 .. 1.2
_ADAMW_RMS = 0.2  # of an update of AdamW


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon trains it: output channels x everything else, at least 16 each."""
    if parameter.ndim < 2:
        return False
    rows = parameter.shape[0]
    return min(rows, parameter.numel() // rows) >= _MIN_SIDE


class Muon(torch.optim.Optimizer):
    """Muon for the matrices among the parameters, AdamW for the rest.

    Args:
        groups: parameter groups; each is divided in two that keep its entries.
        lr: learning rate.
        betas: AdamW's.
        weight_decay: decoupled, of both.
        eps: AdamW's.
        momentum: Muon's, in Nesterov's form.
        fused: AdamW in one kernel; needs all parameters on a GPU.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float,
        momentum: float = 0.95,
        fused: bool = False,
    ) -> None:
        matrices, others = [], []
        for group in groups:
            for mine, kind in ((matrices, True), (others, False)):
                params = [parameter for parameter in group["params"] if is_matrix(parameter) == kind]
                if params:
                    mine.append({**group, "params": params})
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._num_matrix_groups = len(matrices)
        self._adamw = None
        if others:
            self._adamw = torch.optim.AdamW(
                others, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps, fused=fused
            )
            self._adamw.state = self.state  # one optimiser to whoever saves or schedules
            self.param_groups += self._adamw.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups[: self._num_matrix_groups]:
            self._step_matrices(group)
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(buffer, group["momentum"]).flatten(1)
            alike[update.shape[0], update.shape[1]].append((parameter, update))
        for shape, pairs in alike.items():
            directions = orthogonalise(torch.stack([update for _, update in pairs]))
            for (parameter, _), direction in zip(pairs, directions.unbind(), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(
                    direction.view(parameter.shape), alpha=-group["lr"] * _ADAMW_RMS * max(shape) ** 0.5
                )


def orthogonalise(matrices: Tensor) -> Tensor:
    """(n, rows, columns) -> nearly U V^T of each matrix U S V^T, by a Newton-Schulz iteration; float32.

    It runs in bf16 on a GPU, which its fixed points forgive.
    """
    rows, columns = matrices.shape[1:]
    x = matrices.mT if rows > columns else matrices
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + 1e-7).to(x.dtype)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(a * x, torch.baddbmm(b * gram, gram, gram, alpha=c), x)
    return (x.mT if rows > columns else x).float()
