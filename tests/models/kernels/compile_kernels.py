"""Every kernel compiled for an H100 on a machine without one, at the sizes of the 2B model or those given.

    python tests/models/kernels/compile_kernels.py [WIDTH HEADS]

Prints a line of JSON for each: registers and spilled bytes of a thread, shared memory of a program in bytes,
warps, and how many programs a multiprocessor holds at once.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

SHARED = 227 * 1024  # bytes of a multiprocessor
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def compile_kernel(kernel: JITFunction, *given: Any, **options: Any) -> None:
    """In place of a launch, whose arguments say what to compile for."""
    values = dict(zip(kernel.arg_names, given, strict=False))
    values |= {name: options.pop(name) for name in list(options) if name in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        number = value.storage_offset() * value.element_size() if isinstance(value, Tensor) else value
        signature[parameter.name] = (
            TYPES[value.dtype] if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"
        )
        if not isinstance(value, float) and number % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True)
    match = re.search(r"REG:(\d+) STACK:(\d+)", report.stdout + report.stderr)
    assert match is not None, report
    registers, spilled = (int(number) for number in match.groups())
    warps, shared = options.get("num_warps", 4), found.metadata.shared
    at_once = min(65536 // (registers * 32 * warps), 64 // warps, SHARED // (shared + 1024))
    row = {"kernel": kernel.__name__, "registers": registers, "spilled": spilled, "shared": shared,
        "warps": warps, "programs_at_once": at_once}  # fmt: skip
    sys.stdout.write(json.dumps(row) + "\n")


def main(dim: int = 2240, heads: int = 20) -> None:
    from sana_train.models.kernels import functions as fused

    frames, height, width = 3, 5, 7
    rows, keys, half_head = frames * height * width, 300, dim // heads // 2

    def half(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16)

    wide, weights = half(rows, 6 * dim), [torch.empty(6 * dim), torch.empty(6 * dim, 1, 3, 3)]
    fused.gated_conv_forward(wide, *weights, weights[0], height, width)
    dz, _ = fused.gated_conv_backward(half(rows, 3 * dim), wide, *weights, weights[0], height, width)
    fused.silu_conv_backward(dz, wide, *weights, height, width)
    qkv, weight, angles = half(1, rows, 3 * dim), torch.empty(dim), torch.empty(rows, half_head)
    out, *kept = fused.linear_attention_forward(qkv, weight, weight, angles, angles, heads, 1e-5, 1e-8)
    fused.linear_attention_backward(out, qkv, weight, weight, angles, angles, *kept, heads, 1e-8)
    key, value = half(1, keys, 2 * dim).chunk(2, dim=-1)
    caption = (key, value, torch.tensor([keys], dtype=torch.int32))
    out, rstd, lse = fused.cross_attention_forward(half(1, rows, dim), weight, *caption, heads, 1e-6)
    fused.cross_attention_backward(out, out, out, weight, rstd, *caption, lse, heads)
    table, x, each = torch.empty(1, 6, dim).unbind(1), torch.empty(rows, dim), torch.empty(rows)
    for is_kept in (True, False):
        for update, bias in ((None, None), (half(rows, dim), weight)):
            fused.norm_forward(x, update, bias, *table[:2], 1e-6, torch.bfloat16, is_kept)
            has_update = update is not None
            fused.norm_backward(half(rows, dim), x, half(rows, dim), each, *table[:2], has_update)
    for bias, copy in ((weight, True), (None, False)):
        fused.gate_forward(x, half(rows, dim), bias, table[2], torch.bfloat16 if copy else None)
        copied = half(rows, dim) if copy else None
        fused.gate_backward(x, copied, half(rows, dim), bias, table[2], torch.bfloat16)
    fused.neighbours(half(1, frames, height * width, dim))
    fused.readers(half(1, frames, height * width, dim))


if __name__ == "__main__":
    JITFunction.__getitem__ = lambda kernel, _: (
        lambda *given, **options: compile_kernel(  # type: ignore
            kernel, *given, **options
        )
    )
    main(*(int(each) for each in sys.argv[1:]))
