"""One autoencoder run in several ways, in turns: seconds, memory, and what each does to the result.

    python experiments/real_size/variants.py OUT/NAME.json ltx2 stock channels_last fused_norms [--clip ...]
    python experiments/real_size/variants.py OUT/NAME.json dcae_v channels_first channels_last

All ways have the same random weights. The first named is what the others are divided by; errors are against
the first in fp32 (TF32 on a GPU), so that a way which rounds more would show. ``--size tiny`` runs the same
code on the tiny classes in seconds, on a CPU too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.cli.vae_choice import read_choices
from sana_train.evaluation.vae_bench.measure import Passes, measure_in_turns, random_clip
from sana_train.types import VideoShape
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json

SEED = 0
GIB = 2**30
WAYS = {
    "ltx2": {
        "stock": ["use_channels_last=false", "use_fused_norms=false"],
        "channels_last": ["use_channels_last=true", "use_fused_norms=false"],
        "fused_norms": ["use_channels_last=true", "use_fused_norms=true"],
        "compiled": ["use_channels_last=false", "use_fused_norms=false", "compile_mode=default"],
        "compiled_channels_last": ["use_channels_last=true", "use_fused_norms=false", "compile_mode=default"],
    },
    "dcae_v": {
        "channels_first": ["use_channels_last=false"],
        "channels_last": ["use_channels_last=true"],
        "whole_clip": ["use_channels_last=true", "use_streaming=false"],
    },
}
CLIPS = {"2b": "704x1280x81", "tiny": "64x64x17"}
# Seconds that are wanted of LTX-2 on one H200 (encode, decode).
WANTED_S = {"704x1280x81": (0.378, 0.200), "1408x2560x81": (None, 0.900)}


def video_shape(text: str) -> VideoShape:
    height_px, width_px, frames = map(int, text.split("x"))
    return VideoShape(frames, height_px, width_px)


@torch.no_grad()
def errors(model: VideoAutoencoder, truth: tuple[Tensor, Tensor], clip: Tensor) -> dict[str, float]:
    """||result - truth|| / ||truth|| of latents, and of what the true latents decode to."""
    model.to(clip.device)
    dtype = next(model.parameters()).dtype
    encoded, decoded = model.encode(clip.to(dtype)), model.decode_unclamped(truth[0].to(dtype))
    model.to("cpu")
    return {"encode": _distance(encoded, truth[0]), "decode": _distance(decoded, truth[1])}


def _distance(result: Tensor, exact: Tensor) -> float:
    return float((result.float() - exact).norm() / exact.norm())


def summary(passes: Passes, first: Passes) -> dict[str, Any]:
    """Median, range, the ratio to the first way's median, and memory."""
    row: dict[str, Any] = {
        "s": statistics.median(passes.seconds),
        "range_s": [min(passes.seconds), max(passes.seconds)],
        "of_first": statistics.median(passes.seconds) / statistics.median(first.seconds),
    }
    if passes.peak is not None:
        row |= {"allocated_gib": passes.peak.allocated_gib, "reserved_gib": passes.peak.reserved_gib}
    return row


@contextmanager
def at_most(gib: float | None, device: torch.device) -> Iterator[None]:
    """Inside the block torch may reserve so much of the GPU's memory and no more, as on a smaller card."""
    if gib is None:
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(gib * GIB / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def compare(
    kind: str,
    ways: Sequence[str],
    size: str,
    clip: str,
    rounds: int,
    device: torch.device,
    memory_gib: float | None,
) -> dict[str, Any]:
    name = f"{kind}_{size}"
    choices = read_choices([[name, "weights=null", *WAYS[kind][way]] for way in ways])
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models: list[VideoAutoencoder] = [choice.build(dtype, device, SEED) for choice in choices]
    with at_most(memory_gib, device):
        passes = measure_in_turns(models, video_shape(clip), dtype, device, rounds, SEED, lambda _: None)
    judged = random_clip(video_shape(CLIPS[size]), torch.float32, device, SEED, 0)
    exact = choices[0].build(torch.float32, device, SEED).to(device)
    with torch.no_grad():
        latents = exact.encode(judged)
        truth = latents, exact.decode_unclamped(latents)
    del exact
    rows = [
        {
            "way": way,
            "encode": summary(encodes, passes[0][0]),
            "decode": summary(decodes, passes[0][1]),
            "error": errors(model, truth, judged),
        }
        for way, model, (encodes, decodes) in zip(ways, models, passes, strict=True)
    ]
    return {
        "autoencoder": name,
        "clip": clip,
        "judged_on": CLIPS[size],
        "dtype": str(dtype).removeprefix("torch."),
        "rounds": rounds,
        "memory_gib": memory_gib,
        "wanted_s": WANTED_S.get(clip) if kind == "ltx2" else None,
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the JSON file")
    parser.add_argument("kind", choices=tuple(WAYS))
    parser.add_argument(
        "ways", nargs="+", help="; ".join(f"{kind}: {', '.join(WAYS[kind])}" for kind in WAYS)
    )
    parser.add_argument("--size", choices=tuple(CLIPS), default="2b")
    parser.add_argument("--clip", help="height x width x frames")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--benchmark", action="store_true", help="let cuDNN try its algorithms and keep the best"
    )
    parser.add_argument("--memory-gib", type=float, help="measure as on a card of so much memory")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.ways) - WAYS[given.kind].keys())
    if unknown:
        parser.error(f"{given.kind} has no way {', '.join(unknown)}")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if given.memory_gib is not None and device.type != "cuda":
        parser.error(f"--memory-gib {given.memory_gib}: a CPU's memory cannot be capped")
    torch.backends.cudnn.benchmark = given.benchmark
    clip = given.clip or CLIPS[given.size]
    record = compare(given.kind, given.ways, given.size, clip, given.rounds, device, given.memory_gib)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    cudnn = {"cudnn": torch.backends.cudnn.version() or "none", "cudnn_benchmark": given.benchmark}
    facts = {"size": given.size, **cudnn, "environment": environment(device)}
    write_json(given.out, {**record, **facts})


if __name__ == "__main__":
    main()
