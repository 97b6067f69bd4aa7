"""How long training stands still for a checkpoint of a sharded model, in the background and as a full state.

    torchrun --nproc-per-node 2 experiments/sharding/stall.py --out experiments/sharding/stall.json

A full-state save gathers every tensor and writes it on the first rank while the others wait, as a run without
sharded checkpoints must. Both kinds take turns; between saves there are steps of AdamW on random latents. Of
several ranks the slowest counts, round by round; the first save of each kind, which on a GPU locks the memory
that the later ones copy into, is told apart. One rank for each GPU, or any number on the CPU; the record is
written anew after every round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from sana_train.training.gloo import gloo_group
from sana_train.training.optimiser import build_optimiser
from sana_train.training.optimiser_state import optimiser_state
from sana_train.training.sharding import Sharding, sharded_copy
from sana_train.utils.environment import environment
from sana_train.utils.shards import gathered

WIDTH_OF_HEAD = 32
SAVES = ("full", "background")


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
        # As the trainer computes where weights are gathered in bfloat16.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            state = self.model.prepare(context, mask)
            loss = self.model(latents, torch.rand(1, device=self.device), state).square().mean()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.num_steps += 1
        self.ema.update(self.num_steps)

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Weights, averages, moments."""
        return self.model.state_dict(), self.ema.state_dict(), optimiser_state(self.optimiser)


def save_full(trial: Trial, target: Path, meet: Callable[[], object]) -> None:
    model, ema, moments = ({k: gathered(v).cpu() for k, v in part.items()} for part in trial.parts())
    if dist.get_rank() == 0:
        ckpt.save_checkpoint(target, model, ema, {"optimiser": moments}, {})
    meet()


def save_beside(saver: BackgroundSaver, trial: Trial, target: Path, published: Callable[[], object]) -> None:
    saver.save(target, *trial.parts(), {}, published)


class Clock:
    """Measures on every rank what all of them begin together; they meet through their CPUs."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._group = device, gloo_group()

    def seconds(self, work: Callable[[], object]) -> list[float]:
        """Of ``work`` on each rank, with what it left to the GPU."""
        self.meet()
        started = time.perf_counter()
        work()
        self._settle()
        took: list[float] = [0.0] * dist.get_world_size()
        dist.all_gather_object(took, time.perf_counter() - started, group=self._group)
        return took

    def meet(self) -> None:
        self._settle()
        dist.barrier(self._group)

    def all_see(self, checkpoint: Path) -> bool:
        """The same answer on every rank, or one would take a step alone."""
        answers = [False] * dist.get_world_size()
        dist.all_gather_object(answers, checkpoint.exists(), group=self._group)
        return all(answers)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Found = dict[str, list[list[float]]]  # of each kind, in order: the seconds of every rank


def measure(trial: Trial, folder: Path, num_rounds: int, num_steps: int) -> Iterator[Found]:
    """Everything found so far, after each round."""
    saver, clock = BackgroundSaver(), Clock(trial.device)
    found: Found = {name: [] for name in (*SAVES, "published", "step", "step_beside")}
    for _ in range(3):
        trial.step()
    for number in range(num_rounds):
        found["step"] += [clock.seconds(trial.step) for _ in range(num_steps)]
        full, background = (ckpt.checkpoint_path(folder, 2 * number + i) for i in (0, 1))
        found["full"].append(clock.seconds(partial(save_full, trial, full, clock.meet)))
        clear(folder, clock)
        published: list[float] = []  # of the first rank, which publishes
        done = partial(_add_seconds_since, time.perf_counter(), published)
        found["background"].append(clock.seconds(partial(save_beside, saver, trial, background, done)))
        while not clock.all_see(background):
            found["step_beside"].append(clock.seconds(trial.step))
        saver.wait()
        found["published"].append(published)
        clear(folder, clock)
        yield found


def _add_seconds_since(started: float, to: list[float]) -> None:
    to.append(time.perf_counter() - started)


def clear(folder: Path, clock: Clock) -> None:
    """A disk must have room for one checkpoint, not for all."""
    clock.meet()
    if dist.get_rank() == 0:
        shutil.rmtree(folder / "checkpoints")
    clock.meet()


def summary(found: Found) -> dict[str, dict[str, float]]:
    """Of the slowest rank of each; of saves the first stands apart, and is not among the others."""
    told: dict[str, dict[str, float]] = {}
    for name, values in found.items():
        slowest = [max(ranks) for ranks in values]
        told[name] = {"first": round(slowest[0], 4)} if name in SAVES else {}
        later = slowest[1:] if name in SAVES else slowest
        if later:
            told[name] |= {
                "median": round(statistics.median(later), 4),
                "min": round(min(later), 4),
                "max": round(max(later), 4),
                "n": len(later),
            }
    return told


def pick_device(accelerator: str) -> torch.device:
    """The device of this rank."""
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    num_gpus, num_ranks = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    if num_gpus < num_ranks:
        raise SystemExit(
            f"{num_ranks} ranks and {num_gpus} GPUs, but each rank needs one of its own; give fewer ranks "
            "(torchrun --nproc-per-node), or --accelerator cpu"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--out", type=Path, required=True, help="the record, a json file")
    top.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    top.add_argument("--depth", type=int, default=12)
    top.add_argument("--width", type=int, default=768)
    top.add_argument("--rounds", type=int, default=7, help="each a save of both kinds")
    top.add_argument("--steps", type=int, default=3, help="between two pairs of saves")
    given = top.parse_args()
    load = os.getloadavg()[0]
    device = pick_device(given.accelerator)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    places: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(places)
    trial = Trial(given.depth, given.width, device)
    facts = {
        "parameters": sum(parameter.numel() for parameter in trial.model.parameters()),
        "ranks": dist.get_world_size(),
        "load_average_before": round(load, 2),
        "environment": environment(device),
    }
    try:
        for found in measure(trial, Path(places[0]), given.rounds, given.steps):
            if dist.get_rank() == 0:
                record = {**facts, "seconds": summary(found), "saves_by_rank": rounded(found)}
                given.out.write_text(json.dumps(record, indent=2) + "\n")
                last = {name: round(max(found[name][-1]), 2) for name in (*SAVES, "published", "step")}
                sys.stdout.write(f"round {len(found['full'])} of {given.rounds}, seconds: {last}\n")
                sys.stdout.flush()
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(places[0], ignore_errors=True)
    dist.destroy_process_group()


def rounded(found: Found) -> dict[str, list[str]]:
    """A line for each save, with the seconds of every rank."""
    return {name: [" ".join(f"{s:.4f}" for s in ranks) for ranks in found[name]] for name in SAVES}


if __name__ == "__main__":
    main()
