"""An optimiser's state as flat tensors, for a checkpoint that fills them in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def parameter_names(optimiser: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """The name in ``model`` of every parameter, in the optimiser's order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimiser.param_groups for p in group["params"]]


def require_same_parameters(found: Sequence[str], expected: Sequence[str], where: str) -> None:
    """State is kept by position, so the positions must mean what they meant.

    Args:
        found: names as they were saved.
        expected: names as they are now.
        where: it was saved, for the message.

    Raises:
        ValueError: naming what is trained now and was not then, or the reverse, or the first that moved.
    """
    if list(found) == list(expected):
        return
    gone, new = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
    moved = next((f"{a} was where {b} is" for a, b in zip(found, expected) if a != b), "")
    what = "; ".join(
        part
        for part in (
            f"trained then, not now: {', '.join(gone)}" if gone else "",
            f"trained now, not then: {', '.join(new)}" if new else "",
            f"in another order: {moved}" if not gone and not new else "",
        )
        if part
    )
    raise ValueError(
        f"the optimiser state of {where} is of other parameters ({what}). Go on with the code and the "
        "configuration that wrote it, or start another run with run_id=<a new name>"
    )


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Flat tensors of an optimiser by parameter position, so that DCP can fill them in place.

    A count that is kept as a number is a tensor of its own here; ``take_over_counts`` brings it back.
    """
    flat: dict[str, Any] = {}
    position = 0
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            state = optimiser.state.get(parameter)
            if state:
                for name, value in state.items():
                    flat[_key(position, name)] = torch.tensor(value) if isinstance(value, int) else value
            position += 1
    return flat


def prepare_optimiser_state(optimiser: torch.optim.Optimizer, saved_keys: set[str]) -> dict[str, Any]:
    """Empty moments for the parameters that had them when ``saved_keys`` were written."""
    names: dict[int, list[str]] = {}
    for key in sorted(saved_keys):
        position, name = key.split(".", 1)
        names.setdefault(int(position), []).append(name)
    position = 0
    own = getattr(optimiser, "init_state", None)  # of moments that are not shaped like their parameter
    for number, group in enumerate(optimiser.param_groups):
        for index, parameter in enumerate(group["params"]):
            if own is not None and position in names:
                own(group, parameter, number, index)
            else:
                for name in names.get(position, []):
                    optimiser.state[parameter][name] = _empty_moment(name, parameter, group)
            position += 1
    return optimiser_state(optimiser)


def take_over_counts(optimiser: torch.optim.Optimizer, restored: dict[str, Any]) -> None:
    """Numbers among the state, from the flat tensors that ``prepare_optimiser_state`` gave to be filled."""
    position = 0
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            state = optimiser.state.get(parameter) or {}
            for name in [name for name, value in state.items() if isinstance(value, int)]:
                state[name] = int(restored[_key(position, name)])
            position += 1


def _key(position: int, name: str) -> str:
    return f"{position:04d}.{name}"


def _empty_moment(name: str, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """A moment has its parameter's shape; AdamW's step count is one number, on the GPU if fused."""
    if name != "step":
        return torch.zeros_like(parameter)
    on_device = group.get("fused") or group.get("capturable")
    return torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu")
