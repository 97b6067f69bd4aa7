"""The training loop itself at true size, on cached latents: time, memory, and how long it waits for data.

    python experiments/real_size/train_step.py OUT SCRATCH [--kernels fused] [--recompute none] [--size tiny]

The DiT of ``scale=2b`` with random weights, AdamW, averages and clipping as in training; latents and captions
are random numbers in shards of the format that precompute writes, read by loader workers. Writes
OUT/train_step_<kernels>.json (train_step.json of plain ones): per policy the ``speed/*`` that a run logs, and
the peak that ``cli.plan`` counts. ``--size tiny`` runs the same code in seconds, on a CPU too.
"""

from __future__ import annotations

import argparse
import gc
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from sana_train.cli import benchmark_loader
from sana_train.cli.config import RunConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import compose_config, load
from sana_train.data.datamodule import ClipDataModule
from sana_train.data.latent_clips import LatentClips
from sana_train.flow.time_sampling import LogitNormal
from sana_train.models.checkpoint import build_empty
from sana_train.models.flops import training_flops
from sana_train.models.layers.kernels import Kernels
from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.callbacks.throughput import ThroughputCallback, Work
from sana_train.training.jsonl import JsonlLogger, read_jsonl
from sana_train.training.memory import step_memory
from sana_train.training.shell import TrainingShell
from sana_train.training.tasks.flow import FlowTask
from sana_train.training.trainer import build_trainer
from sana_train.types import LatentSpec
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json

GRIDS = {"2b": (11, 22, 40), "tiny": (3, 4, 4)}
GLOBAL_BATCH, MICRO_BATCH, WORKERS = 4, 1, 4
WINDOW, NUM_WINDOWS = 4, 3  # steps; the first window warms up
GIB = 2**30


class Unit:
    """Latents that are normalised already."""

    def __init__(self, spec: LatentSpec) -> None:
        self.spec = spec

    def normalise(self, latents: Tensor) -> Tensor:
        return latents


def train(config: RunConfig, clips: LatentClips, policy: Recompute, run_dir: Path) -> dict[str, Any]:
    """Some steps of the real loop."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    node = config.model
    assert node is not None
    model = build_empty(lambda: instantiate(node), device, torch.float32)
    assert isinstance(model, SanaVideoDiT)
    model.reset_parameters()
    model.set_recompute(policy)
    groups = [{"name": "all", "params": list(model.parameters())}]
    unit: Any = Unit(clips.spec)
    no_text: Any = None  # captions come encoded
    task: Any = FlowTask(model, groups, unit, no_text, LogitNormal(shift=3.0), 0.1, "none")
    run = config.training
    shell = TrainingShell(
        task, seed=0, optimiser=run.optimiser, lr=run.lr, warmup_steps=run.warmup_steps, betas=run.betas,
        eps=run.eps, weight_decay=run.weight_decay, clip_norm=run.clip_norm, ema_decay=run.ema_decay,
        log_every=1, run_dir=run_dir, resume_from=None,
    )  # fmt: skip
    data = ClipDataModule(
        clips, clips, global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH, seed=0, num_workers=WORKERS
    )
    grid = (clips.latent_shape[1], clips.latent_shape[2], clips.latent_shape[3])
    num_tokens = grid[0] * grid[1] * grid[2]
    work = Work(training_flops(model, grid, clips.record["max_tokens"]), num_tokens)
    trainer = build_trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        num_nodes=1,
        precision="bf16-mixed",
        num_steps=WINDOW * NUM_WINDOWS,
        accumulation=data.split(1).accumulation,
        loggers=[JsonlLogger(run_dir, 0)],
        deterministic=False,
        callbacks=[ThroughputCallback(WINDOW, lambda _: work)],
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(shell, datamodule=data)
    lines = [line for line in read_jsonl(run_dir / "metrics.jsonl") if "speed/samples_per_s" in line]
    speeds = {name: value for name, value in lines[-1].items() if name.startswith("speed/")}
    return {"recompute": policy, "clip_ms": 1000 / speeds["speed/samples_per_s"], **speeds}


def counted_gib(config: RunConfig, shape: tuple[int, int, int, int], policy: Recompute) -> float:
    """What ``cli.plan`` says of the same step."""
    node = config.model
    assert node is not None
    memory = step_memory(
        lambda: instantiate(node),  # type: ignore[return-value]
        shape,
        micro_batch=MICRO_BATCH,
        is_accumulating=GLOBAL_BATCH > MICRO_BATCH,
        recompute=policy,
        optimiser=config.training.optimiser,
        use_autocast=True,
    )
    return memory.peak / GIB


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("scratch", type=Path, help="for latents and runs")
    parser.add_argument("--recompute", nargs="+", choices=("none", "selective", "full"),
        default=["selective", "full"])  # fmt: skip
    parser.add_argument("--kernels", choices=get_args(Kernels), help="(those of the scale)")
    parser.add_argument("--size", choices=tuple(GRIDS), default="2b")
    given = parser.parse_args(arguments)
    wide = ["model.max_tokens=300", "model.caption_dim=2304", "text.max_tokens=300", "text.dim=2304"]
    chosen = [] if given.kernels is None else [f"model.kernels={given.kernels}"]
    config = load(compose_config([*(["scale=2b"] if given.size == "2b" else ["scale=tiny", *wide]), *chosen]))
    shape = (128, *GRIDS[given.size])
    clips = LatentClips(benchmark_loader.random_latents(given.scratch / "latents", 64, shape), {})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    record = {"size": given.size, "grid": GRIDS[given.size], "workers": WORKERS, "rows": rows}
    assert config.model is not None
    kernels = config.model["kernels"]
    record |= {"environment": environment(device), "kernels": kernels, "clips": GLOBAL_BATCH}
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / ("train_step.json" if kernels == "reference" else f"train_step_{kernels}.json")
    for policy in given.recompute:
        run_dir = given.scratch / "runs" / policy
        shutil.rmtree(run_dir, ignore_errors=True)
        gc.collect()  # a trainer refers to itself, so the run before is still in memory
        torch.cuda.empty_cache()
        rows.append({**train(config, clips, policy, run_dir), "counted_gib": None})
        write_json(file, record)
    for row in rows:  # last: what was measured is kept if no time is left for it
        row["counted_gib"] = counted_gib(config, shape, row["recompute"])
    write_json(file, record)


if __name__ == "__main__":
    main()
