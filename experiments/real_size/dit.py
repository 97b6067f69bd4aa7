"""The DiT at its true size: a file in NVlabs' format, loading it as a source, a training step.

    python experiments/real_size/dit.py PART OUT --checkpoint FILE [--size tiny]

``write`` makes the 480p model (16 channels in patches of 1x2x2) with random values. ``load`` moves it into
the 128-channel space as ``python train.py scale=2b`` does. ``step`` times forward and backward of what was
loaded, in plain PyTorch (experiments/speed has other kernels), ``step_recompute`` the same with blocks that
compute again what they do not keep, ``step_compiled`` under torch.compile. Each writes OUT/PART.json.
``--size tiny`` runs the same code in seconds, on a CPU too.
"""

from __future__ import annotations

import argparse
import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_train.cli.config import RunConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import compose_config, load
from sana_train.cli.parts import Parts
from sana_train.flow.objective import velocity_loss
from sana_train.flow.path import noisy_latents, velocity_target
from sana_train.models.checkpoint import build_empty, read_state, write_nvlabs
from sana_train.models.flops import forward_flops, training_flops
from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.models.weight_files import map_tensors
from sana_train.training.callbacks.throughput import peak_flops
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json

GIB = 2**30
GRIDS = {"2b": (11, 22, 40), "tiny": (3, 4, 4)}  # latents of 81 x 704 x 1280, and of 17 x 128 x 128
PARTS = ("write", "load", "step", "step_recompute", "step_compiled")
WARM_UP, REPEATS = 3, 10
SAMPLE_S = 0.005


def configuration(size: str, checkpoint: Path) -> RunConfig:
    """What ``python train.py`` would run, in plain PyTorch: from 16 channels in patches of 1x2x2 into 128."""
    wan = ["source.model.latent_channels=16", "+source.model.patch_size=[1,2,2]"]
    chosen = ["scale=2b"] if size == "2b" else ["scale=tiny", *wan]
    return load(compose_config([*chosen, "model.kernels=reference", f"source.checkpoint={checkpoint}"]))


def write(size: str, checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """The file, in bf16 as published, with no tensor of zeros: arithmetic on those is too fast."""
    if not checkpoint.is_file():
        config = configuration(size, checkpoint)
        assert config.model is not None and config.source is not None
        node = {**config.model, **config.source.model}
        torch.manual_seed(0)
        model = build_empty(lambda: instantiate(node), device, torch.bfloat16)
        model.reset_parameters()
        state = {
            key: value if value.any() else value.normal_(std=0.02)
            for key, value in model.state_dict().items()
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_nvlabs({key: value.cpu() for key, value in state.items()}, checkpoint)
    tensors = map_tensors(checkpoint)
    return {
        "file": checkpoint.name,
        "file_gib": checkpoint.stat().st_size / GIB,
        "num_tensors": len(tensors),
        "num_values": sum(value.numel() for value in tensors.values()),
        "dtypes": sorted({str(value.dtype) for value in tensors.values()}),
    }


class HostMemory:
    """The peak of this process's memory on the host while the block runs, sampled beside it.

    Attributes:
        before, peak: ``anonymous`` is its own, ``file`` the pages of mapped files that happen to be in
            memory and can be dropped at any time; GiB.
    """

    def __enter__(self) -> HostMemory:
        self.before = self._read()
        self.peak = dict(self.before)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._note()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._note()

    def _note(self) -> None:
        self.peak = {key: max(value, self.peak[key]) for key, value in self._read().items()}

    @staticmethod
    def _read() -> dict[str, float]:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        kib = {"anonymous": lines["RssAnon"], "file": lines["RssFile"]}
        return {key: int(value.split()[0]) / 2**20 for key, value in kib.items()}


def load_as_source(size: str, checkpoint: Path, device: torch.device) -> tuple[SanaVideoDiT, dict[str, Any]]:
    """The adapted model, and what it took: on a GPU nothing but the network may stay."""
    parts = Parts(configuration(size, checkpoint), device)
    torch.zeros(1, device=device)  # the device's own set-up is not part of loading
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with HostMemory() as host:
        start = time.perf_counter()
        model: Any = parts.model
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    report = parts.load_report
    assert report is not None
    network = sum(value.numel() * value.element_size() for value in model.state_dict().values()) / GIB
    anonymous = host.peak["anonymous"] - host.before["anonymous"]
    on_device = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
    record = {
        "seconds": seconds,
        "file_gib": checkpoint.stat().st_size / GIB,
        "network_gib": network,
        "num_parameters": sum(value.numel() for value in model.parameters()),
        "host_before_gib": host.before,
        "host_peak_gib": host.peak,
        "host_anonymous_added_gib": anonymous,
        "device_peak_gib": on_device,
        "copies_on_device": None if on_device is None else on_device / network,
        "copies_on_host": anonymous / network,
        "load_report": report.to_dict(),
        "load_table": str(report),
        "changed_while_loading": _changed(model, checkpoint, report.loaded),
    }
    return model, record


def _changed(model: SanaVideoDiT, checkpoint: Path, loaded: list[str]) -> list[str]:
    """Keys that were to be loaded and are not what the file holds."""
    ours, theirs = model.state_dict(), read_state(checkpoint)
    return [key for key in loaded if not torch.equal(ours[key], theirs[key].to(ours[key]))]


def step(size: str, model: SanaVideoDiT, device: torch.device, part: str) -> dict[str, Any]:
    """Forward, and forward with backward, of one clip with a full caption."""
    use_compile = part == "step_compiled"
    policies: tuple[Recompute, ...] = ("selective", "full") if part == "step_recompute" else ("none",)
    grid = GRIDS[size]
    torch.set_float32_matmul_precision("high")  # as training sets it
    torch.manual_seed(0)
    latents = torch.randn(1, model.latent_channels, *grid, device=device)
    noise, t = torch.randn_like(latents), torch.full((1,), 0.6, device=device)
    context = torch.randn(1, *model.null_context.shape, device=device)
    mask = torch.ones(context.shape[:2], dtype=torch.bool, device=device)

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            predicted = model(noisy_latents(latents, noise, t), t, model.prepare(context, mask))
        return velocity_loss(predicted, velocity_target(latents, noise)).mean()

    run = torch.compile(loss, dynamic=False) if use_compile else loss

    def forward() -> None:
        with torch.no_grad():
            run()

    def forward_backward() -> None:
        model.zero_grad(set_to_none=True)
        run().backward()

    num_context = context.shape[1]
    work = {
        "forward": (forward, forward_flops(model, grid, num_context)),
        "forward_backward": (forward_backward, training_flops(model, grid, num_context)),
    }
    num_tokens = math.prod(grid)
    rows = []
    if "none" not in policies:
        del work["forward"]  # which keeps nothing anyway
    all_weights = (torch.float32, torch.bfloat16) if part == "step" else (torch.float32,)
    for weights, policy in product(all_weights, policies):
        model.to(weights).zero_grad(set_to_none=True)
        model.set_recompute(policy)
        for name, (call, flops) in work.items():
            row = {"pass": name, "weights": str(weights).removeprefix("torch."), "compiled": use_compile}
            rows.append({**row, "recompute": policy, **measure(call, flops, num_tokens, device)})
    return {
        "grid": grid,
        "num_tokens": num_tokens,
        "num_context": num_context,
        "repeats": REPEATS,
        "peak_flops": peak_flops(device),
        "rows": rows,
    }


def measure(call: Callable[[], None], flops: int, num_tokens: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds (median and range), tokens per second, MFU and memory; or that memory was too small."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        for _ in range(WARM_UP):
            call()
        milliseconds = [_timed(call, device) for _ in range(REPEATS)]
    except torch.OutOfMemoryError as error:
        return {"error": str(error).splitlines()[0]}
    median = statistics.median(milliseconds)
    peak = peak_flops(device)
    row: dict[str, Any] = {
        "ms": median,
        "ms_range": [min(milliseconds), max(milliseconds)],
        "tokens_per_s": num_tokens / median * 1000,
        "flops": flops,
        "mfu": None if peak is None else flops / (median / 1000) / peak,
    }
    if device.type == "cuda":
        row["allocated_gib"] = torch.cuda.max_memory_allocated(device) / GIB
        row["reserved_gib"] = torch.cuda.max_memory_reserved(device) / GIB
    return row


def _timed(call: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1000
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the file; written if it is not there")
    parser.add_argument("--size", choices=tuple(GRIDS), default="2b")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given.part == "write":
        record = write(given.size, given.checkpoint, device)
    else:
        model, record = load_as_source(given.size, given.checkpoint, device)
        if given.part != "load":
            record = step(given.size, model, device, given.part)
    given.out.mkdir(parents=True, exist_ok=True)
    record = {"size": given.size, **record, "environment": environment(device)}
    write_json(given.out / f"{given.part}.json", record)


if __name__ == "__main__":
    main()
