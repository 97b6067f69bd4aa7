"""One block's arithmetic by each of `model.kernels`: errors, milliseconds, memory, and where the time goes.

    python experiments/speed/kernels.py OUT [--size 2b] [--minutes 9] [--only pieces errors train ...]

Sections run in that order and each result is written to OUT/kernels.json as it comes; none is begun after the
time limit. `--size tiny` runs the same code in a minute, on a CPU too, where `fused` is the reference.
It is one long file because scripts of a record are run alone and import no other script.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sana_train.models.layers.kernels import Kernels
from sana_train.models.layers.recompute import Recompute
from sana_train.models.layers.rope import Rotation, grid_positions, rotate, rotation
from sana_train.models.sana_video import CaptionState, SanaVideoDiT
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json

SIZES: dict[str, dict[str, Any]] = {
    "2b": {
        "latent_channels": 128, "patch_size": [1, 1, 1], "depth": 20, "width": 2240, "num_heads": 20,
        "cross_num_heads": 20, "mlp_ratio": 3.0, "caption_dim": 2304, "max_tokens": 300,
    },
    "tiny": {
        "latent_channels": 128, "patch_size": [1, 1, 1], "depth": 2, "width": 192, "num_heads": 6,
        "cross_num_heads": 6, "mlp_ratio": 3.0, "caption_dim": 256, "max_tokens": 48,
    },
}  # fmt: skip
GRIDS = {"2b": (11, 22, 40), "tiny": (3, 4, 5)}
ALL: tuple[Kernels, ...] = ("reference", "fused", "compiled")
POLICIES: tuple[Recompute, ...] = ("none", "full", "selective")
FAMILIES = {  # of kernel names, the first that fits
    "optimiser": ("adam", "multi_tensor"),
    "attention": ("flash", "fmha", "cross_", "attention", "sdpa"),
    "linear attention": ("linear_",),
    "depthwise conv": ("gated_conv", "_conv_backward", "conv_depthwise", "depthwise", "dgrad2d", "wgrad2d"),
    "matrix product": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "splitk", "mm_"),
    "copy": ("memcpy", "memset", "copy", "cat"),
}
GIB = 2**30
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Bench:
    """Writes what it is told as it comes, and knows when to stop."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.path, self.end = out / "kernels.json", time.monotonic() + seconds
        self.record: dict[str, Any] = {"environment": environment(DEVICE)}

    def add(self, section: str, row: dict[str, Any]) -> None:
        self.record.setdefault(section, []).append(row)
        write_json(self.path, self.record)
        sys.stdout.write(f"{section}: {json.dumps(row)}\n")
        sys.stdout.flush()

    def run(
        self, section: str, name: dict[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """One row; what fails is a row too, so that the others are still measured."""
        if time.monotonic() > self.end:
            row = {**name, "skipped": "time limit"}
            self.add(section, row)
            return row
        try:
            row = measure()
        except torch.cuda.OutOfMemoryError as error:
            row = {"out_of_memory": str(error).split(". ")[0]}
        except Exception as error:
            row = {
                "failed": f"{type(error).__name__}: {str(error)[-1500:]}",
                "at": traceback.format_exc(limit=-3),
            }
        row = {**name, **row}
        self.add(section, row)
        gc.collect()
        if DEVICE.type == "cuda":
            # After a fault of the device every call fails: each then says so in its own row.
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
        return row

    def section(self, name: str, measure: Callable[[], None]) -> None:
        """What prepares several rows; if that fails it is a row, and the next section is begun."""
        try:
            measure()
        except Exception as error:
            self.add(name, {"failed": f"{type(error).__name__}: {str(error)[-1500:]}",
                "at": traceback.format_exc(limit=-3)})  # fmt: skip


def milliseconds(work: Callable[[], Any], rounds: int = 7, warmups: int = 3) -> float:
    """The median of ``rounds``."""
    for _ in range(warmups):
        work()
    if DEVICE.type != "cuda":
        spent = []
        for _ in range(2):
            start = time.perf_counter()
            work()
            spent.append(1000 * (time.perf_counter() - start))
        return statistics.median(spent)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))


# The machine's ceilings ------------------------------------------------------------------------


def ceilings() -> dict[str, Any]:
    size = 8192 if DEVICE.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = milliseconds(lambda: a @ b, 10)
    source = torch.empty(
        2**30 if DEVICE.type == "cuda" else 2**20, device=DEVICE, dtype=torch.bfloat16
    ).normal_()
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), 10)
    return {
        "matmul_tflops": 2 * size**3 / product / 1e9,
        "copy_tb_per_s": 2 * source.numel() * 2 / copy / 1e9,
    }


def products(size: str, bench: Bench) -> None:
    """The projections of a block as a step has them: forward, gradients of the input and of the weight."""
    frames, height, width = GRIDS[size]
    rows, dim = frames * height * width, SIZES[size]["width"]
    shapes = {"qkv": (dim, 3 * dim), "out": (dim, dim), "expand": (dim, 6 * dim), "project": (3 * dim, dim),
        "temporal": (3 * dim, dim)}  # fmt: skip
    for name, (inner, outer) in shapes.items():

        def measure(inner: int = inner, outer: int = outer) -> dict[str, Any]:
            x = torch.randn(rows, inner, device=DEVICE, dtype=torch.bfloat16)
            weight = torch.randn(outer, inner, device=DEVICE, dtype=torch.bfloat16)
            grad = torch.randn(rows, outer, device=DEVICE, dtype=torch.bfloat16)
            times = {
                "forward_ms": milliseconds(lambda: torch.mm(x, weight.t())),
                "input_ms": milliseconds(lambda: torch.mm(grad, weight)),
                "weight_bf16_ms": milliseconds(lambda: torch.mm(grad.t(), x)),
            }
            if DEVICE.type == "cuda":
                times["weight_fp32_ms"] = milliseconds(lambda: torch.mm(grad.t(), x, out_dtype=torch.float32))
            flops = 2 * rows * inner * outer
            return {**times, "forward_tflops": flops / times["forward_ms"] / 1e9}

        bench.run("products", {"product": name, "inner": inner, "outer": outer}, measure)


# Pieces ----------------------------------------------------------------------------------------


def _piece(
    fused: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: list[Tensor],
    wanted: list[int],
    mib: float,
) -> dict[str, Any]:
    """Errors of both against float32, times of both forward and both ways; MiB is what must be moved."""

    def both(function: Callable[..., Any], dtype: torch.dtype | None) -> tuple[Tensor, list[Tensor]]:
        given = [x if dtype is None or not x.is_floating_point() else x.to(dtype) for x in inputs]
        given = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(given)]
        out = function(*given)
        generator = torch.Generator(DEVICE).manual_seed(1)
        grad = torch.randn(out.shape, generator=generator, device=DEVICE)
        out.backward(grad.to(out.dtype))
        return out.detach(), [given[i].grad for i in wanted]  # type: ignore[misc]

    def rel(a: Tensor, b: Tensor) -> float:
        return float((a.float() - b.float()).norm() / b.float().norm())

    exact, exact_grads = both(reference, torch.float32)
    row: dict[str, Any] = {"floor_mib": mib}
    for name, function in (("reference", reference), ("fused", fused)):
        out, grads = both(function, None)
        row[f"{name}_error"] = rel(out, exact)
        row[f"{name}_gradient_errors"] = [rel(a, b) for a, b in zip(grads, exact_grads, strict=True)]
        del out, grads
        row |= _times(name, function, inputs, wanted)
    return row


def _times(
    name: str, function: Callable[..., Any], inputs: list[Tensor], wanted: list[int]
) -> dict[str, float]:
    leaves = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    with torch.no_grad():
        forward = milliseconds(lambda: function(*leaves))
    grad = torch.randn_like(function(*leaves))
    both = milliseconds(lambda: torch.autograd.grad(function(*leaves), [leaves[i] for i in wanted], grad))
    return {f"{name}_forward_ms": forward, f"{name}_both_ms": both}


def pieces(size: str, bench: Bench) -> None:
    """Each fused operator beside plain PyTorch in bfloat16, at one clip's size."""
    from sana_train.models.kernels import functions as fused
    from sana_train.models.kernels import gated_conv

    grid, sizes = GRIDS[size], SIZES[size]
    dim, heads, context = sizes["width"], sizes["num_heads"], sizes["max_tokens"]
    frames, height, width = grid
    rows, unit = frames * height * width, frames * height * width * dim * 2 / 2**20
    head_dim, hidden = dim // heads, 3 * dim

    def half(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)

    def full(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE)

    rope = rotation(grid_positions(grid, DEVICE), head_dim, torch.float32)

    def linear(qkv: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
        query, key, value = qkv.chunk(3, dim=-1)
        query = F.rms_norm(query.float(), (dim,), q_weight.float(), 1e-5).to(qkv.dtype).relu()
        key = F.rms_norm(key.float(), (dim,), k_weight.float(), 1e-5).to(qkv.dtype).relu()
        query, key, value = (each.unflatten(-1, (heads, -1)) for each in (query, key, value))
        turned_query, turned_key = rotate(query, Rotation(*rope)), rotate(key, Rotation(*rope))
        summary = torch.einsum("bnae,bnaf->baef", turned_key.float(), value.float())
        mixed = torch.einsum("bnae,baef->bnaf", turned_query.float(), summary)
        total = torch.einsum("bnae,bae->bna", query.float(), key.float().sum(1)).unsqueeze(-1)
        return (mixed / (total + 1e-8)).to(qkv.dtype).flatten(2)

    def linear_fused(qkv: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
        cos, sin = rope.cos.squeeze(1), rope.sin.squeeze(1)
        return fused.LinearAttentionFunction.apply(qkv, q_weight, k_weight, cos, sin, heads, 1e-5, 1e-8)

    bench.run("pieces", {"piece": "linear attention"}, lambda: _piece(
        linear_fused, linear, [half(1, rows, 3 * dim), full(dim), full(dim)], [0, 1, 2],
        19 * unit))  # fmt: skip

    lengths = torch.tensor([context * 2 // 3], dtype=torch.int32, device=DEVICE)
    mask = (torch.arange(context, device=DEVICE) < lengths[:, None])[:, None, None]

    def cross(
        x: Tensor, weight: Tensor, bias: Tensor, q_weight: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        query = F.linear(x, weight, bias)
        query = F.rms_norm(query.float(), (dim,), q_weight.float(), 1e-6).to(x.dtype)
        query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
        additive = torch.where(mask, 0.0, -10000.0).to(x.dtype)
        return (
            F.scaled_dot_product_attention(query, key, value, attn_mask=additive).transpose(1, 2).flatten(2)
        )

    def cross_fused(*inputs: Tensor) -> Tensor:
        return fused.CrossAttentionFunction.apply(*inputs, lengths, heads, 1e-6)

    given = [half(1, rows, dim), half(dim, dim) / dim**0.5, half(dim), half(dim), half(1, context, dim),
        half(1, context, dim)]  # fmt: skip
    bench.run("pieces", {"piece": "cross-attention with its projection of queries"}, lambda: _piece(
        cross_fused, cross, given, [0, 1, 2, 3, 4, 5], 12 * unit))  # fmt: skip

    def conv(x: Tensor, in_bias: Tensor, taps: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        active = F.silu(x + in_bias).view(frames, height, width, -1).permute(0, 3, 1, 2)
        z = F.conv2d(active, taps, bias, padding=1, groups=2 * hidden).permute(0, 2, 3, 1).flatten(0, 2)
        value, gate = z.chunk(2, dim=-1)
        return F.linear(value * F.silu(gate), weight)

    given = [half(rows, 2 * hidden), half(2 * hidden), half(2 * hidden, 1, 3, 3) / 3, half(2 * hidden),
        half(dim, hidden) / hidden**0.5]  # fmt: skip
    before = gated_conv._CHANNELS, gated_conv._WARPS, gated_conv._PAIRS
    for channels, warps, pairs in (
        (128, 2, 4),
        (256, 4, 4),
        (64, 1, 4),
        (256, 2, 4),
        (128, 1, 4),
        (128, 2, 11),
    ):
        gated_conv._CHANNELS, gated_conv._WARPS, gated_conv._PAIRS = channels, warps, pairs
        bench.run("pieces", {"piece": "gated convolution with its projection", "channels": channels,
            "warps": warps, "pairs": pairs}, lambda: _piece(
            lambda *x: fused.GatedConvLinear.apply(*x, height, width), conv, given, [0, 1, 2, 3, 4],
            45 * unit))  # fmt: skip
    gated_conv._CHANNELS, gated_conv._WARPS, gated_conv._PAIRS = before

    def modulated(x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        out = F.layer_norm(x.float(), (dim,), eps=1e-6) * (1 + scale) + shift
        return F.linear(out.to(weight.dtype), weight)

    bench.run("pieces", {"piece": "modulated norm with a projection"}, lambda: _piece(
        lambda x, b, s, w: fused.ModulatedLinear.apply(x, b, s, w, torch.bfloat16)[0], modulated,
        [full(rows, dim), full(1, dim), full(1, dim), half(dim, dim) / dim**0.5], [0, 1, 2, 3],
        12 * unit))  # fmt: skip

    def gated(x: Tensor, a: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        return x + gate * F.linear(a, weight, bias)

    bench.run("pieces", {"piece": "gated residual with a projection"}, lambda: _piece(
        lambda *x: fused.GatedLinear.apply(*x, False)[0], gated,
        [full(rows, dim), half(rows, dim), half(dim, dim) / dim**0.5, half(dim), full(1, dim)],
        [0, 1, 2, 3, 4], 10 * unit))  # fmt: skip

    def temporal(x: Tensor, u: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
        padded = F.pad(u, (0, 0, 0, 0, 1, 1))
        around = torch.cat([padded[:, :-2], u, padded[:, 2:]], dim=-1)
        return x + gate * (u + F.linear(around, weight)).flatten(0, 2)

    bench.run("pieces", {"piece": "temporal convolution with gated residual"}, lambda: _piece(
        lambda *x: fused.GatedTemporal.apply(*x, True), temporal,
        [full(rows, dim), half(1, frames, height * width, dim), half(dim, 3 * dim) / (3 * dim) ** 0.5,
         full(1, dim)], [0, 1, 2, 3], 26 * unit))  # fmt: skip


# The whole network ------------------------------------------------------------------------------


def build(size: str) -> SanaVideoDiT:
    """Random weights that let captions and time reach the output, none at zero."""
    torch.manual_seed(0)
    with DEVICE:
        model = SanaVideoDiT(**SIZES[size])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.uniform_(0.5, 1.5)
                elif parameter.ndim == 1:
                    parameter.normal_(std=0.1)
                else:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def sample(model: SanaVideoDiT, size: str, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, times, captions and a ragged mask."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    context = torch.randn(batch, *model.null_context.shape, generator=generator, device=DEVICE)
    length = context.shape[1]
    lengths = torch.randint(length // 4, length + 1, (batch, 1), generator=generator, device=DEVICE)
    mask = torch.arange(length, device=DEVICE) < lengths
    latents = torch.randn(batch, 128, *GRIDS[size], generator=generator, device=DEVICE)
    return latents, torch.rand(batch, generator=generator, device=DEVICE), context, mask


def loss_of(model: SanaVideoDiT, inputs: tuple[Tensor, Tensor, Tensor, Tensor], use_half: bool) -> Tensor:
    latents, t, context, mask = inputs
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=use_half):
        predicted = model(latents, t, model.prepare(context, mask))
    return (predicted.float() - latents).square().mean()


def errors(size: str, bench: Bench, num_inputs: int, ways: Sequence[Kernels]) -> None:
    """Output and per-layer gradients against float32 without TF32, median over inputs."""
    model = build(size)
    rows: dict[str, list[dict[str, Any]]] = {}

    def gradients(kernels: Kernels, seed: int, use_half: bool) -> tuple[Tensor, dict[str, Tensor]]:
        # As training allows it; float32 that others are held against has no TF32.
        torch.set_float32_matmul_precision("high" if use_half else "highest")
        model.set_kernels(kernels)
        model.set_recompute("full")
        model.zero_grad(set_to_none=True)
        inputs = sample(model, size, 1, seed)
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=use_half):
            out = model(*inputs[:2], model.prepare(*inputs[2:]))
        loss_of(model, inputs, use_half).backward()
        return out, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def measure(seed: int) -> dict[str, Any]:
        exact, truth = gradients("reference", seed, False)
        row: dict[str, Any] = {}
        for kernels in ways:
            out, found = gradients(kernels, seed, True)
            relative = {
                name: float((found[name] - truth[name]).norm() / truth[name].norm()) for name in truth
            }
            row[kernels] = {
                "output": float((out - exact).norm() / exact.norm()),
                "median_layer": statistics.median(relative.values()),
                "worst_layer": max(relative.items(), key=lambda each: each[1]),
            }
            rows.setdefault(kernels, []).append({"output": row[kernels]["output"], **relative})
            del found
        return row

    for seed in range(num_inputs):
        bench.run("errors", {"seed": seed}, lambda seed=seed: measure(seed))
    if "reference" in rows:

        def median(kernels: str, name: str) -> float:
            return statistics.median(each[name] for each in rows[kernels])

        for kernels in rows.keys() - {"reference"}:
            ratios = {
                name: median(kernels, name) / median("reference", name) for name in rows["reference"][0]
            }
            worst = sorted(ratios.items(), key=lambda each: -each[1])[:8]
            bench.add("error_ratios", {"kernels": kernels, "output": ratios["output"],
                "median": statistics.median(ratios.values()),
                "over_1.1": sum(r > 1.1 for r in ratios.values()),
                "of": len(ratios), "worst": worst})  # fmt: skip


def family(name: str) -> str:
    lowered = name.lower()
    return next((kind for kind, words in FAMILIES.items() if any(word in lowered for word in words)), "other")


def breakdown(work: Callable[[], Any]) -> dict[str, Any]:
    """Device milliseconds of one call by family, and its longest kernels."""
    if DEVICE.type != "cuda":
        return {}
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    families: dict[str, float] = {}
    kernels = []
    for event in profile.key_averages():
        spent = event.self_device_time_total / 1000
        families[family(event.key)] = families.get(family(event.key), 0.0) + spent
        kernels.append((event.key[:90], round(spent, 3), event.count))
    kernels.sort(key=lambda each: -each[1])
    rounded = {name: round(spent, 2) for name, spent in sorted(families.items(), key=lambda each: -each[1])}
    return {"families_ms": rounded, "longest": kernels[:60]}


# What each kernel must move in a block, in bfloat16 rows of the width: in a training step that keeps
# everything, and in a denoising step. float32 rows count two; what is read again from the cache does not.
MOVED = {
    "_norm_forward": (11, 9), "_norm_backward": (15, 0), "_gate_forward": (11, 11), "_gate_backward": (11, 0),
    "_gated_conv": (27, 9), "_conv_backward": (18, 0), "_gather_neighbours": (4, 4),
    "_gather_readers": (4, 0), "_rms_statistics": (3, 3), "_rms_backward": (9, 0),
    "_linear_summarise": (2, 2), "_linear_mix": (2, 2), "_linear_mix_backward": (3, 0),
    "_linear_summarise_backward": (4, 0),
    "_cross_forward": (2, 2), "_cross_query_backward": (4, 0), "_cross_key_backward": (2, 0),
}  # fmt: skip
ADAM_BYTES = 28  # of a parameter: weight, gradient and two moments are read, all but the gradient written


def floors(size: str, bench: Bench, row: dict[str, Any], num_parameters: int) -> None:
    """Each kernel of a fused row beside the time of a copy of what it must move; largest gap first."""
    copy = bench.record["ceilings"][0].get("copy_tb_per_s")
    if copy is None or "longest" not in row:
        return  # no GPU, or that row has failed and says so
    of = "denoise" if "denoise_ms" in row else "train"
    clips = row.get("batch", 2)
    unit = clips * math.prod(GRIDS[size]) * SIZES[size]["width"] * 2 * SIZES[size]["depth"]
    found = []
    for name, spent, launches in row["longest"]:
        if name in MOVED:
            moved = MOVED[name][of == "denoise"] * unit
        elif family(name) == "optimiser":
            moved = ADAM_BYTES * num_parameters
        else:
            continue
        floor = moved / copy / 1e9
        found.append({"of": of, "kernel": name[:40], "launches": launches, "gb": round(moved / 1e9, 2),
            "ms": spent, "floor_ms": round(floor, 2), "share_of_copy": round(floor / spent, 3),
            "gap_ms": round(spent - floor, 2)})  # fmt: skip
    for each in sorted(found, key=lambda each: -each["gap_ms"]):
        bench.add("floors", each)


def training(
    model: SanaVideoDiT,
    size: str,
    batch: int,
    kernels: Kernels,
    policy: Recompute,
    optimiser: torch.optim.Optimizer,
) -> dict[str, Any]:
    """A step with its optimiser: milliseconds, those of forward and backward alone, peak GiB, breakdown."""
    model.set_kernels(kernels)
    model.set_recompute(policy)
    inputs = sample(model, size, batch, 0)

    def gradients() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss_of(model, inputs, True).backward()

    def step() -> None:
        gradients()
        optimiser.step()

    start = time.perf_counter()
    step()
    row: dict[str, Any] = {"first_s": round(time.perf_counter() - start, 2)}
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    row["step_ms"] = milliseconds(step, 7, 2)
    if DEVICE.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        row["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    row["forward_backward_ms"] = milliseconds(gradients, 5, 1)
    return {**row, **breakdown(step)}


def denoising(model: SanaVideoDiT, size: str, kernels: Kernels) -> dict[str, Any]:
    """A forward pass of a clip with guidance: two samples, a caption and its null."""
    model.set_kernels(kernels)
    latents, t, context, mask = sample(model, size, 2, 0)
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
        state: CaptionState = model.prepare(context, mask)

        def forward() -> Tensor:
            return model(latents, t, state)

        spent = milliseconds(forward)
        return {"denoise_ms": spent, **breakdown(forward)}


def network(size: str, bench: Bench, only: Sequence[str], ways: Sequence[Kernels]) -> None:
    torch.set_float32_matmul_precision("high")
    model = build(size)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if "denoise" in only or "floors" in only:
        for kernels in ways if "denoise" in only else ("fused",):
            row = bench.run(
                "denoise", {"kernels": kernels}, lambda kernels=kernels: denoising(model, size, kernels)
            )
            if kernels == "fused" and "floors" in only:
                floors(size, bench, row, num_parameters)
    fused = DEVICE.type == "cuda"
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=fused)
    plan: list[tuple[int, Kernels, Recompute]] = []
    if "train" in only:
        plan.extend((1, kernels, policy) for kernels, policy in itertools.product(ways, POLICIES))
    elif "floors" in only:
        plan.append((1, "fused", "none"))
    if "batch4" in only:
        plan.extend((4, kernels, policy) for kernels in ways for policy in POLICIES[:2])
    for batch, kernels, policy in plan:
        name = {"batch": batch, "kernels": kernels, "recompute": policy}
        row = bench.run(
            "train", name, lambda b=batch, k=kernels, p=policy: training(model, size, b, k, p, optimiser)
        )
        if (batch, kernels, policy) == (1, "fused", "none") and "floors" in only:
            floors(size, bench, row, num_parameters)
        optimiser.zero_grad(set_to_none=True)


def table(record: dict[str, Any]) -> str:
    lines = [f"{'batch':>5} {'kernels':<10} {'recompute':<10} {'step ms':>8} {'fwd+bwd':>8} {'GiB':>6}"]
    for row in record.get("train", []):
        if "batch" not in row:
            continue  # the section failed as a whole and has said so
        numbers = [f"{row[key]:.1f}" if key in row else "-" for key in
            ("step_ms", "forward_backward_ms", "peak_gib")]  # fmt: skip
        lines.append(f"{row['batch']:>5} {row['kernels']:<10} {row['recompute']:<10} {numbers[0]:>8} "
            f"{numbers[1]:>8} {numbers[2]:>6}")  # fmt: skip
    for row in record.get("denoise", []):
        if "denoise_ms" in row:
            lines.append(f"denoise with guidance, {row['kernels']}: {row['denoise_ms']:.1f} ms")
    for row in record.get("floors", []):
        if "kernel" in row:
            lines.append(f"{row['of']:<8} {row['kernel']:<40} {row['launches']:>4} {row['ms']:>8.2f} ms "
                f"{row['gb']:>7.2f} GB {row['share_of_copy']:>6.0%} of a copy")  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--size", choices=tuple(SIZES), default="2b")
    parser.add_argument("--minutes", type=float, default=9.0, help="no measurement begins later")
    sections = ("pieces", "errors", "denoise", "train", "floors", "batch4")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--ways", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--inputs", type=int, default=2, help="of the errors' median")
    given = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.out, 60 * given.minutes)
    bench.record |= {"size": given.size, "grid": GRIDS[given.size]}
    bench.run("ceilings", {}, ceilings)
    if "pieces" in given.only:
        bench.section("products", lambda: products(given.size, bench))
        if DEVICE.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
            bench.section("pieces", lambda: pieces(given.size, bench))
    if "errors" in given.only:
        bench.section("errors", lambda: errors(given.size, bench, given.inputs, given.ways))
    bench.section("train", lambda: network(given.size, bench, given.only, given.ways))
    sys.stdout.write(table(bench.record) + "\n")


if __name__ == "__main__":
    main()
