"""What Triton's interpreter, by which tests run the kernels without a GPU, does in another way."""


# ruff: noqa: ANN001, ANN201
# To a type checker Triton's language is no Python.
# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

_HAS_PTX = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")


@triton.jit  # whose arguments must not be annotated
def dot(a, b):
    """The matrix product with float32 sums; float32 operands are not rounded."""
    if _HAS_PTX:
        return tl.dot(a, b, input_precision="ieee")
    # The interpreter multiplies the integers that hold bfloat16 numbers.
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")


@triton.jit
def tanh(x):
    """tanh to 11 bits, more than bfloat16 keeps, in one instruction."""
    if _HAS_PTX:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


def direct(operator: Any) -> Callable[..., Any]:
    """The function behind a registered operator, called as such where nothing looks at operators.

    PyTorch's way to it costs the processor as much time as a small kernel costs the GPU.
    """
    function = operator._init_fn

    def call(*inputs: Any) -> Any:
        is_watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
        return operator(*inputs) if is_watched else function(*inputs)

    return call
