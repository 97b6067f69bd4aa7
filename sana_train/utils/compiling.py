"""torch.compile as every part of this project calls it: with what it gets wrong turned off.

On GPUs inductor may make the sums over rows and those over columns of a norm's backward pass in one kernel
("mix-order reduction", on by default since torch 2.10, from 4,096 rows and 5 Mi numbers on). Where such a sum
is a slice of a larger gradient, as those of a block's shifts, scales and gates are, the generated
code gives the sum to nobody and returns memory that was never written (pytorch/pytorch#193061, mended behind
2.13). Without that kernel the sums are written where they belong, at the price of reading the rows again.

A compiled backward pass is traced in the forward pass and by default under its autocast, whatever the layers
say: products that they make in float32, as linear attention's, have their gradients made in bfloat16. Plain
PyTorch's backward passes know no autocast, so these do not either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compiled_function(
    function: Callable[..., Any],
    mode: str | None = None,
    switches: dict[str, Any] | None = None,
    *,
    fullgraph: bool = False,
) -> Callable[..., Any]:
    """``function`` compiled for each shape it meets.

    Args:
        function: what to compile.
        mode: of torch.compile.
        switches: of inductor, over those of the mode.
        fullgraph: whether a graph break is an error.
    """
    _turn_off_what_is_wrong()
    if switches is not None:
        options = {**(torch._inductor.list_mode_options(mode) if mode is not None else {}), **switches}
        return torch.compile(function, options=options, dynamic=False, fullgraph=fullgraph)
    return torch.compile(function, mode=mode, dynamic=False, fullgraph=fullgraph)


def compile_module(module: nn.Module, mode: str | None = None) -> None:
    """Compile ``module``'s calls in place, for each shape they meet."""
    _turn_off_what_is_wrong()
    module.compile(mode=mode, dynamic=False)


def _turn_off_what_is_wrong() -> None:
    from torch._functorch import config as tracing
    from torch._inductor import config  # seconds, for those who compile

    # For the whole process, as a backward pass is compiled when it first runs, wherever that is.
    config.triton.mix_order_reduction = False
    tracing.backward_pass_autocast = "off"
