"""What a block keeps for its backward pass, and what it computes once more instead.

Legend: B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
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
