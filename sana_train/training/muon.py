"""Muon: momentum whose matrices are made nearly orthogonal, with AdamW for everything that is no matrix.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the size of a step is
that of Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982), so one learning rate serves
both halves. ``torch.optim.Muon`` refuses convolutions, which are most of an autoencoder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_MIN_SIDE = 16  # tables, depthwise kernels and kernels on colours are no matrices worth the name
_STEPS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at 0: after five steps singular values lie in about 0.7 .. 1.2
_ADAMW_RMS = 0.2  # of an update of AdamW
_NUMBERS_AT_ONCE = 2**27  # 0.5 GiB; beside the weights lie a few times as much while these are updated


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
        alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                rows = parameter.shape[0]
                alike[rows, parameter.numel() // rows].append(parameter)
        for stacks in _portions(list(alike.values())):
            self._update(stacks, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, alike: list[list[Tensor]], lr: float, weight_decay: float, momentum: float) -> None:
        """Of lists of matrices of one size each, together: a small step on a GPU is made of launches."""
        params = [parameter for members in alike for parameter in members]
        grads = [parameter.grad for parameter in params if parameter.grad is not None]
        buffers = [self._buffer(parameter) for parameter in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum)
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        rest = iter(updates)
        stacks = [torch.stack([next(rest).flatten(1) for _ in members]) for members in alike]
        directions = [direction for stack in _directions(stacks) for direction in stack.unbind()]
        shaped = [d.view(p.shape) for d, p in zip(directions, params, strict=True)]
        torch._foreach_add_(params, shaped, alpha=-lr)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _portions(alike: list[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """The same lists, cut so that each portion has ``_NUMBERS_AT_ONCE`` numbers at most, or one matrix."""
    portion: list[list[Tensor]] = []
    room = _NUMBERS_AT_ONCE
    for members in alike:
        rest = members
        while rest:
            num = min(len(rest), room // rest[0].numel())
            if not num and portion:
                yield portion
                portion, room = [], _NUMBERS_AT_ONCE
                continue
            taken, rest = rest[: max(1, num)], rest[max(1, num) :]
            portion.append(taken)
            room -= len(taken) * taken[0].numel()
    if portion:
        yield portion


def _directions(stacks: list[Tensor]) -> list[Tensor]:
    """Of stacked momenta (n, rows, columns) the updates of size like AdamW's, for a learning rate of 1."""
    return [_ADAMW_RMS * max(stack.shape[1:]) ** 0.5 * orthogonalise(stack) for stack in stacks]


def orthogonalise(matrices: Tensor) -> Tensor:
    """(n, rows, columns) -> nearly U V^T of each matrix U S V^T, by a Newton-Schulz iteration; float32.

    It runs in bf16 on a GPU, which its fixed points forgive.
    """
    rows, columns = matrices.shape[1:]
    x = matrices.mT if rows > columns else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if rows > columns else x).to(matrices.dtype, memory_format=torch.contiguous_format)
