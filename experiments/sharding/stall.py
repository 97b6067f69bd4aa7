"""How long training stands still for a checkpoint of a sharded model, in the background and as a full state.

    torchrun --nproc-per-node 2 experiments/sharding/stall.py --out experiments/sharding/stall.json

A full-state save gathers every tensor and writes it on the first rank while the others wait, as a run without
sharded checkpoints must. Both kinds take turns; between saves there are steps of AdamW on random latents.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training import checkpoint as ckpt
from sana_train.training.background_save import BackgroundSaver
from sana_train.training.ema import Ema
from sana_train.training.optimiser import build_optimiser
from sana_train.training.optimiser_state import optimiser_state
from sana_train.training.sharding import Sharding, sharded_copy
from sana_train.utils.shards import gathered

WIDTH_OF_HEAD = 32


def build(depth: int, width: int) -> SanaVideoDiT:
    heads = width // WIDTH_OF_HEAD
    return SanaVideoDiT(16, [1, 1, 1], depth, width, heads, heads, 3.0, caption_dim=64, max_tokens=8)


class Trial:
    """A sharded DiT in training."""

    def __init__(self, depth: int, width: int, device: torch.device) -> None:
        with torch.device("meta"):
            empty = build(depth, width)
        sharding = Sharding(fill=lambda _: None)
        self.model = sharded_copy(empty, sharding, device, use_bf16=device.type == "cuda")
        torch.manual_seed(0)
        for parameter in self.model.parameters():
            parameter.detach().normal_(std=0.02)
        self.ema = Ema(self.model, 0.9)
        groups = [{"params": list(self.model.parameters())}]
        self.optimiser = build_optimiser(groups, 1e-4, (0.9, 0.95), 0.0, 1e-8)
        self.device, self.num_steps = device, 0

    def step(self) -> None:
        latents = torch.randn(1, 16, 2, 4, 4, device=self.device)
        context = torch.randn(1, 8, 64, device=self.device)
        mask = torch.ones(1, 8, dtype=torch.bool, device=self.device)
        state = self.model.prepare(context, mask)
        self.model(latents, torch.rand(1, device=self.device), state).square().mean().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.num_steps += 1
        self.ema.update(self.num_steps)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def parts(self) -> list[dict[str, Tensor]]:
        """Weights, averages, moments."""
        return [self.model.state_dict(), self.ema.state_dict(), optimiser_state(self.optimiser)]


def save_full(trial: Trial, target: Path) -> None:
    model, ema, moments = ({k: gathered(v).cpu() for k, v in part.items()} for part in trial.parts())
    if dist.get_rank() == 0:
        ckpt.save_checkpoint(target, model, ema, {"optimiser": moments}, {})
    dist.barrier()


def all_see(checkpoint: Path) -> bool:
    """The same answer on every rank, or one would take a step alone."""
    is_there = torch.tensor(float(checkpoint.exists()))
    dist.all_reduce(is_there, dist.ReduceOp.MIN)
    return bool(is_there)


def seconds(work: Callable[[], object]) -> float:
    dist.barrier()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(trial: Trial, folder: Path, num_rounds: int, num_steps: int) -> dict[str, Any]:
    saver = BackgroundSaver()
    found: dict[str, list[float]] = {
        name: [] for name in ("full", "background", "published", "step", "step_beside")
    }
    for _ in range(3):
        trial.step()
    for number in range(num_rounds):
        found["step"] += [seconds(trial.step) for _ in range(num_steps)]
        full, background = (ckpt.checkpoint_path(folder, 2 * number + i) for i in (0, 1))
        found["full"].append(seconds(partial(save_full, trial, full)))
        started = time.perf_counter()
        model, ema, moments = trial.parts()
        found["background"].append(
            seconds(partial(saver.save, background, model, ema, moments, {}, lambda: None))
        )
        while not all_see(background):
            found["step_beside"].append(seconds(trial.step))
        saver.wait()
        found["published"].append(time.perf_counter() - started)
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(folder / "checkpoints")
        dist.barrier()
    return {
        name: {
            "median": round(statistics.median(values), 4),
            "min": round(min(values), 4),
            "max": round(max(values), 4),
            "n": len(values),
        }
        for name, values in found.items()
    }


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--out", type=Path, required=True)
    top.add_argument("--depth", type=int, default=12)
    top.add_argument("--width", type=int, default=768)
    top.add_argument("--rounds", type=int, default=7)
    top.add_argument("--steps", type=int, default=3, help="between two pairs of saves")
    given = top.parse_args()
    is_cuda = torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
    device = torch.device("cuda", dist.get_node_local_rank()) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    places: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(places)
    trial = Trial(given.depth, given.width, device)
    found = measure(trial, Path(places[0]), given.rounds, given.steps)
    if dist.get_rank() == 0:
        shutil.rmtree(places[0])
        num = sum(parameter.numel() for parameter in trial.model.parameters())
        facts = {
            "parameters": num,
            "ranks": dist.get_world_size(),
            "device": device.type,
            "rounds": given.rounds,
        }
        given.out.write_text(json.dumps({**facts, "seconds": found}, indent=2) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
