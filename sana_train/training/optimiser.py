"""AdamW, AdamW in 8 bits or Muon, warm-up, staged starts and clipping. No schedule depends on max_steps."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sana_train.training.eight_bit import build_adamw_8bit, missing_bitsandbytes
from sana_train.training.muon import Muon

OptimiserName = Literal["adamw", "adamw_8bit", "muon"]
OPTIMISERS: tuple[OptimiserName, ...] = get_args(OptimiserName)


def missing_library(name: OptimiserName) -> str | None:
    """Why ``build_optimiser`` would refuse ``name`` on this machine; None if it would not."""
    return missing_bitsandbytes() if name == "adamw_8bit" else None


def build_optimiser(
    groups: list[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
    name: OptimiserName = "adamw",
) -> torch.optim.Optimizer:
    """AdamW, AdamW with moments in 8 bits, or Muon beside AdamW, over a task's parameter groups.

    Each group keeps its ``lr_scale`` (default 1), ``start_step`` (default 0, the step from which it
    trains) and ``warmup_steps`` (default None, the run's) for ``set_step``.

    Raises:
        ValueError: a library that ``name`` needs is not installed.
    """
    prepared = []
    for group in groups:
        params = [parameter for parameter in group["params"] if parameter.requires_grad]
        extra = {key: value for key, value in group.items() if key != "params"}
        prepared.append(
            {
                "params": params,
                "lr": lr,
                "lr_scale": extra.pop("lr_scale", 1.0),
                "start_step": extra.pop("start_step", 0),
                "warmup_steps": extra.pop("warmup_steps", None),
                **extra,
            }
        )
    fused = all(p.is_cuda for group in prepared for p in group["params"])
    if name == "adamw_8bit":
        return build_adamw_8bit(prepared, lr, betas, weight_decay, eps)
    if name == "muon":
        return Muon(prepared, lr, betas, weight_decay, eps, fused=fused)
    return torch.optim.AdamW(prepared, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps, fused=fused)


def set_step(optimiser: torch.optim.Optimizer, step: int, lr: float, warmup_steps: int) -> None:
    """Set each group's learning rate for the optimiser step that follows ``step`` completed ones.

    Warm-up is linear over the group's own ``warmup_steps``, or else over those given, and counted from
    the group's ``start_step``.
    """
    for group in optimiser.param_groups:
        age = step - group["start_step"]
        own_steps = warmup_steps if group["warmup_steps"] is None else group["warmup_steps"]
        ramp = (age + 1) / max(1, own_steps)
        group["lr"] = lr * group["lr_scale"] * min(1.0, max(0.0, ramp))


def hold_back(optimiser: torch.optim.Optimizer, step: int) -> list[Tensor]:
    """Drop gradients of groups that have not started; returns the parameters that do train.

    A learning rate of zero would not do: the moments would fill up with gradients of a network
    whose new layers are still noise.
    """
    live: list[Tensor] = []
    for group in optimiser.param_groups:
        if step < group["start_step"]:
            for parameter in group["params"]:
                parameter.grad = None
        else:
            live.extend(group["params"])
    return live


def clip_gradients(parameters: list[Tensor], max_norm: float) -> Tensor:
    """Clip to a global norm, returning the norm before clipping (a device scalar)."""
    return nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
