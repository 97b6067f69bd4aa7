"""``python -m sana_train.cli.latency``: text to pixels at true size, stock diffusers and ours.

A call measures one pipeline, with random weights made on the GPU in bfloat16:

wan_480p      480x832x81   Gemma-2, 2B DiT in the Wan 2.1 space, its decoder
dcae_v_720p   704x1280x81  the same in the DCAE-V space (64 channels, 17,600 tokens); nobody's stock has that
                           decoder, so both sides have ours
ltx2_720p     704x1280x81  the same in the LTX-2 space
ltx2_2k       1408x2560x81 ltx2_720p's stage 1, latent upsampler, LTX-2 refiner of 3 evaluations, decoder

Parts are medians of single calls: a denoising evaluation with guidance counts 50 times, one of the refiner 3
times. What pipelines or both sides share is measured once. --whole runs a pipeline from end to end with all
its networks resident, as a check of the sum and of memory. The refiner's own text encoder (Gemma-3) is left
out: its prompts are cached. Overrides are of ours alone: model.kernels=..., refiner.kernels=...

Each part is one file in OUT/parts, so the same command goes on where it was cut off; after each call, and by
--report without measuring, OUT gets results.json, table.md and figure.png, with the published seconds.

examples:
  python -m sana_train.cli.latency out ltx2_2k
  python -m sana_train.cli.latency out ltx2_2k --whole --ways ours
  python -m sana_train.cli.latency out --report
  python -m sana_train.cli.latency out ltx2_2k --size tiny --whole
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sana_train.cli.arguments import positive, video_size
from sana_train.cli.config import RunConfig
from sana_train.cli.latency_stages import Decode, Denoise, Refine, Stage, Text, Upsample, Way
from sana_train.cli.load import load
from sana_train.cli.preflight import check_overrides
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.cli.vae_choice import read_choices
from sana_train.evaluation.latency import PIPELINES, part_name, write_report
from sana_train.types import VideoShape
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json

_GIB = 2**30
SIZES = {
    "2b": {"480p": "480x832x81", "720p": "704x1280x81", "2k": "1408x2560x81"},
    "tiny": {"480p": "32x32x9", "720p": "64x64x9", "2k": "128x128x9"},
}
_DIT = {
    "wan": ["model.latent_channels=16", "model.patch_size=[1,2,2]"],
    "dcae_v": ["model.latent_channels=64"],
    "ltx2": [],
}
_TINY_WAN = ["wan_2b", "base_width=8", "num_res_blocks=1"]
# Untiled, diffusers' decoder at 2K does not fit beside the rest; tiles are the recipe of NVlabs/Sana#361.
_STOCK_LTX2 = ["use_channels_last=false", "use_fused_norms=false"]
_STOCK_TILES = ["tile_px=512", "tile_stride_px=448"]


@dataclass(frozen=True)
class Setting:
    """What a part is made from."""

    size: str
    overrides: tuple[str, ...]
    device: torch.device

    def config(self, way: Way, kind: str = "ltx2") -> RunConfig:
        """Of the whole pipeline, the DiT being in the space ``kind``; overrides are for ours."""
        return _config(self.size, kind, self.overrides if way == "ours" else ())

    def clip(self, name: str) -> VideoShape:
        return video_size(SIZES[self.size][name])


@functools.cache
def _config(size: str, kind: str, overrides: tuple[str, ...]) -> RunConfig:
    words = [f"scale={size}", "experiment=two_stage", f"upsampler=ltx2_{size}", *_DIT[kind]]
    words += ["refiner.weights=null", "upsampler.weights=null"]
    return load(check_overrides([*words, *overrides]))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.latency", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("out", type=Path, help="a folder, the same for all pipelines")
    top.add_argument("words", nargs="*", metavar="PIPELINE|KEY=VALUE", help=f"of {', '.join(PIPELINES)}")
    top.add_argument("--ways", nargs="+", choices=["stock", "ours"], default=["stock", "ours"])
    top.add_argument("--size", choices=tuple(SIZES), default="2b", help="tiny: the same code in seconds")
    top.add_argument("--steps", type=positive, default=3, metavar="N", help="timed calls (%(default)s)")
    top.add_argument("--whole", action="store_true", help="also one pass from end to end")
    top.add_argument("--report", action="store_true", help="measure nothing, draw what is there")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    with readable_errors(), exit_when_preempted():
        measure(given)
        write_report(given.out)
        sys.stdout.write(f"{given.out}: results.json, table.md and figure.png\n")


def check_words(given: argparse.Namespace) -> tuple[list[str], tuple[str, ...]]:
    """(pipelines, overrides) of a command line.

    Raises:
        ValueError: no such pipeline, or none where something is to be measured.
    """
    overrides = tuple(word for word in given.words if "=" in word)
    pipelines = [word for word in given.words if "=" not in word]
    unknown = sorted(set(pipelines) - set(PIPELINES))
    if unknown or not (pipelines or given.report):
        raise ValueError(
            f"{', '.join(unknown) or 'no pipeline'} given; take one or more of {', '.join(PIPELINES)}"
        )
    return pipelines, overrides


def measure(given: argparse.Namespace) -> None:
    """Every part that is asked for and not there.

    Raises:
        ValueError: no such pipeline, or parts in the folder of another size, device or overrides.
    """
    pipelines, overrides = check_words(given)
    if given.report:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    setting = Setting(given.size, overrides, device)
    setting.config("ours")  # refuses overrides before anything is measured
    for pipeline in pipelines:
        for way in given.ways:
            for part in PIPELINES[pipeline].parts.values():
                _keep(
                    given.out,
                    part_name(part, way),
                    setting,
                    lambda p=part, w=way: _part(p, w, setting, given.steps),
                )
            if given.whole:
                name = f"whole_{pipeline}.{way}"
                _keep(given.out, name, setting, lambda p=pipeline, w=way: _whole(p, w, setting))


def _keep(out: Path, name: str, setting: Setting, make: Any) -> None:
    """``make`` once, its record in a file of its own; that memory was too small is a result."""
    file = out / "parts" / f"{name}.json"
    facts = {
        "size": setting.size,
        "overrides": list(setting.overrides) if name.endswith(".ours") else [],
        "environment": environment(setting.device),
    }
    if file.is_file():
        before = json.loads(file.read_text())
        made_on = {**facts, "environment": facts["environment"]["device"]}
        was = {**before, "environment": before["environment"]["device"]}
        differing = [key for key, value in made_on.items() if was[key] != value]
        if differing:
            raise ValueError(f"{file} was made with another {', '.join(differing)}; give another folder")
        sys.stdout.write(f"{name}: there\n")
        return
    start = time.perf_counter()
    try:
        found = make()
    except torch.OutOfMemoryError as error:
        found = {"error": str(error).split(". ")[0]}
    _release()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**found, **facts})
    shown = {key: value for key, value in found.items() if key != "range_s"}
    sys.stdout.write(f"{name}: {json.dumps(shown)} in {time.perf_counter() - start:.0f} s\n")
    sys.stdout.flush()


def build(part: str, way: Way, setting: Setting) -> Stage:
    """The stage of a part, such as ``denoise_ltx2_720p``, on its device."""
    kind, _, rest = part.partition("_")
    device, size = setting.device, setting.size
    space, _, clip_name = rest.rpartition("_")
    torch.manual_seed(0)
    if kind == "text":
        return Text(setting.config(way), way, size, device)
    clip = setting.clip(clip_name)
    if kind in ("denoise", "decode"):
        skeleton = _autoencoder(space, way, clip_name, setting)
        if kind == "decode":
            return Decode(skeleton, clip, device)
        return Denoise(setting.config(way, space), way, skeleton.spec.latent_shape(clip), device)
    config = setting.config(way)
    latent_shape = _autoencoder("ltx2", way, clip_name, setting).spec.latent_shape(clip)
    if kind == "upsample":
        assert config.upsampler is not None
        return Upsample(config.upsampler, latent_shape, device)
    assert config.refiner is not None
    return Refine(config.refiner, latent_shape, size, device)


def _autoencoder(space: str, way: Way, clip_name: str, setting: Setting) -> Any:
    """Without numbers in it."""
    words = [f"{space}_{setting.size}", "weights=null"]
    if space == "wan" and setting.size == "tiny":
        words = [*_TINY_WAN, "weights=null"]
    if space == "ltx2" and way == "stock":
        words += [*_STOCK_LTX2, *(_STOCK_TILES if clip_name == "2k" and setting.size == "2b" else [])]
    return read_choices([words])[0].skeleton()


@torch.no_grad()
def _part(part: str, way: Way, setting: Setting, num_steps: int) -> dict[str, Any]:
    """Seconds of one call (median, range), and what memory it takes beside its weights."""
    device = setting.device
    before = _allocated(device)
    stage = build(part, way, setting)
    weights = _allocated(device) - before
    start = time.perf_counter()
    stage.once()
    _wait(device)
    first_s = time.perf_counter() - start
    _reset_peak(device)
    seconds = [_seconds(stage.once, device)[1] for _ in range(num_steps)]
    return {
        "s": statistics.median(seconds),
        "range_s": [min(seconds), max(seconds)],
        "count": stage.count,
        "first_s": first_s,
        "weights_gib": weights,
        "peak_gib": _peak(device),
    }


@torch.no_grad()
def _whole(pipeline: str, way: Way, setting: Setting) -> dict[str, Any]:
    """One pass with every network resident, after one call of each that is not counted."""
    device = setting.device
    stages = {name: build(part, way, setting) for name, part in PIPELINES[pipeline].parts.items()}
    for stage in stages.values():
        stage.once()
    _release()
    resident = _allocated(device)
    _reset_peak(device)
    seconds, peaks, given = {}, {}, None
    for name, stage in stages.items():
        given, seconds[name] = _seconds(lambda s=stage, x=given: s.run(x), device)
        peaks[name] = _peak(device)
        _reset_peak(device)
    total = sum(seconds.values())
    return {"s": total, "stages_s": seconds, "peaks_gib": peaks, "resident_gib": resident}


def _seconds(call: Any, device: torch.device) -> tuple[Any, float]:
    _wait(device)
    start = time.perf_counter()
    result = call()
    _wait(device)
    return result, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allocated(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / _GIB if device.type == "cuda" else 0.0


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / _GIB if device.type == "cuda" else None


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
