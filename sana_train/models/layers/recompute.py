"""What a block keeps for its backward pass, and what it computes once more instead.

Legend: B batch, N tokens, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

# none: everything is kept; selective: the input and the results of matrix products and softmax attention,
# 15 B N D numbers of a block; full: the input alone.
Recompute = Literal["none", "selective", "full"]

_aten = torch.ops.aten
# Not `bmm`: the products of linear attention are small, and their results are as large as any and in float32.
_KEPT = frozenset(
    (
        _aten.mm.default,
        _aten.addmm.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_attention_math.default,
    )
)


def recomputed(policy: Recompute, layers: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``layers(*inputs)``; its backward pass computes again what ``policy`` does not keep.

    Gradients are the same to the bit where the layers' arithmetic is the same every time.
    """
    if policy == "none" or not torch.is_grad_enabled():
        return layers(*inputs)
    # No layer draws random numbers, so no generator has to be set back.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if policy == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    result = checkpoint(layers, *inputs, **options)
    assert isinstance(result, Tensor)
    return result


def _keep_products(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


class _Tape(threading.local):
    """How this thread comes by products while it computes layers; a backward pass has threads of its own."""

    take: Callable[[Callable[[], Tensor]], Tensor] | None = None
    is_again: bool = False


_tape = _Tape()


def product(compute: Callable[[], Tensor]) -> Tensor:
    """``compute()``, or where layers are recomputed and products kept, what it gave the first time."""
    if torch.compiler.is_compiling() or _tape.take is None:
        return compute()
    return _tape.take(compute)


def is_computed_again() -> bool:
    """Whether this thread makes a graph of ``recomputed_at_once`` once more: its result is known by then."""
    return not torch.compiler.is_compiling() and _tape.is_again


def recomputed_at_once(
    policy: Recompute, layers: Callable[..., Tensor], parameters: Sequence[Tensor], *inputs: Any
) -> Tensor:
    """As ``recomputed``, for layers whose every small step would cost the processor's time.

    One function of PyTorch's graph holds what is kept and makes the layers' own graph once more in its
    backward pass, where checkpointing packs and unpacks each tensor that any of them keeps, or looks at each
    operation.

    Args:
        policy: ``selective`` keeps what the layers compute by ``product``.
        layers: called twice, with ``inputs``; the numbers of the second result are not read.
        parameters: whose gradients are wanted; read from ``layers`` at both times, so they may be gathered
            anew in between.
        inputs: those that are tensors get gradients; tensors inside of tuples do not.
    """
    if policy == "none" or not torch.is_grad_enabled():
        return layers(*inputs)
    result = _AtOnce.apply(policy, layers, len(inputs), *inputs, *parameters)
    assert isinstance(result, Tensor)
    return result


class _AtOnce(Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, policy: Recompute, layers: Callable[..., Tensor], num_inputs: int, *given: Any
    ) -> Tensor:
        inputs = given[:num_inputs]
        ctx.layers, ctx.parameters = layers, given[num_inputs:]
        ctx.constants = [None if isinstance(each, Tensor) else (each,) for each in inputs]
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        device = tensors[0].device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        products: list[Tensor] = []

        def keep(compute: Callable[[], Tensor]) -> Tensor:
            products.append(compute())
            return products[-1]

        detached = [each.detach() if isinstance(each, Tensor) else each for each in inputs]
        result = _with_tape(keep if policy == "selective" else None, False, layers, detached)
        ctx.save_for_backward(*tensors, *products)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved, inputs = iter(ctx.saved_tensors), []
        for constant in ctx.constants:
            if constant is None:
                tensor = next(saved)
                inputs.append(tensor.detach().requires_grad_(tensor.requires_grad))
            else:
                inputs.append(constant[0])
        products = list(saved)[::-1]
        # An alias: what is handed out becomes part of a graph, what is kept must not.
        give = (lambda _: products.pop().detach()) if products else None
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            result = _with_tape(give, True, ctx.layers, inputs)
        given = (*inputs, *ctx.parameters)
        wanted = [isinstance(each, Tensor) and each.requires_grad for each in given]
        leaves = [each for each, is_wanted in zip(given, wanted, strict=True) if is_wanted]
        found = iter(torch.autograd.grad(result, leaves, grad, allow_unused=True))
        return None, None, None, *(next(found) if is_wanted else None for is_wanted in wanted)


def _with_tape(
    take: Callable[[Callable[[], Tensor]], Tensor] | None,
    is_again: bool,
    layers: Callable[..., Tensor],
    inputs: list[Any],
) -> Tensor:
    before = _tape.take, _tape.is_again
    _tape.take, _tape.is_again = take, is_again
    try:
        return layers(*inputs)
    finally:
        _tape.take, _tape.is_again = before
