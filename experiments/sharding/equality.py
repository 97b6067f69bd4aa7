"""Twenty steps of one process, of two DDP ranks (or --ranks) and of FSDP2's: how far their numbers are apart.

    python experiments/sharding/equality.py --work /tmp/equality --out experiments/sharding/equality.json

Runs `train.py` at the tiny scale with its shipped weights, for each seed and trainer, and holds losses,
gradient norms and the last averaged weights against the run of one process. Another run of one process, in
micro-batches of two, is the control.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sana_train.cli.load import REPOSITORY
from sana_train.training import checkpoint as ckpt
from sana_train.training.jsonl import read_jsonl
from sana_train.utils.environment import environment

TRAINERS = {"one": [], "ddp": ["trainer=ddp"], "fsdp2": ["trainer=fsdp2"], "hsdp": ["trainer=hsdp"]}
# One process, too, whose sums are in another order: what rounding alone makes of the run.
TRAINERS["one_in_twos"] = ["training.micro_batch=2"]
CLIPS = {  # from mp4 through a cache of latents; rendered on the device
    "cpu": ["data.train.source.num_clips=64", "data.heldout.source.num_clips=8"],
    "gpu": [
        "data=world_live",
        "data.train.num_clips=64",
        "data.heldout.num_clips=8",
        "latents.mode=resident",
    ],
}
LOGGED = ("train/loss", "train/grad_norm")


def train(
    run_id: str,
    trainer: list[str],
    seed: int,
    work: Path,
    num_steps: int,
    more: list[str],
    accelerator: str = "cpu",
    ranks: int = 2,
) -> Path:
    """Four clips a step in micro-batches of one: clipped, averaged, accumulated over 4 or 2."""
    num_ranks = ranks if any(word.startswith("trainer=") for word in trainer) else 1
    devices = [f"trainer.devices={num_ranks}", f"trainer.accelerator={accelerator}"]
    sharded = ["trainer.shard_ranks=1"] if trainer == ["trainer=hsdp"] else []
    paths = [f"paths.runs={work / 'runs'}", f"paths.data={work / 'data'}"]
    steps = [f"training.max_steps={num_steps}", f"training.seed={seed}", f"run_id={run_id}", "logger=csv"]
    sizes = [
        "training.global_batch=4",
        "training.micro_batch=1",
        "training.clip_norm=0.1",
        "trainer.log_every=1",
    ]
    # Its evaluations take longer than the steps; they are not what is compared.
    without = ["~convergence", "~reader"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    given = [*devices, *sharded, *paths, *steps, *sizes, *CLIPS[accelerator], *without, *trainer, *more]
    subprocess.run([*start, "train.py", *given], cwd=REPOSITORY, check=True)
    return work / "runs" / run_id


def differences(run: Path, reference: Path, num_steps: int) -> dict[str, float]:
    """The largest over all steps, relative, and of the averages at the end, absolute."""
    mine, theirs = ([x for x in read_jsonl(r / "metrics.jsonl") if LOGGED[0] in x] for r in (run, reference))
    assert len(mine) == len(theirs) == num_steps
    found = {
        name: max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(mine, theirs, strict=True))
        for name in LOGGED
    }
    weights, expected = (ckpt.load_weights(ckpt.checkpoint_path(r, num_steps)) for r in (run, reference))
    far = max((weights[name] - value).abs().max().item() for name, value in expected.items())
    return {**found, "ema": far}


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--work", type=Path, required=True, help="for clips and runs; outside of the repository")
    top.add_argument("--out", type=Path, required=True)
    top.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    top.add_argument("--steps", type=int, default=20)
    top.add_argument("--ranks", type=int, default=2, help="of the trainers of several (2)")
    top.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    top.add_argument("more", nargs="*", help="overrides of train.py")
    given = top.parse_args()
    load = os.getloadavg()[0]
    found: dict[str, Any] = {}
    losses: dict[str, list[list[float]]] = {}
    for seed in given.seeds:
        runs = {
            name: train(
                f"{name}-{seed}",
                trainer,
                seed,
                given.work,
                given.steps,
                given.more,
                given.accelerator,
                given.ranks,
            )
            for name, trainer in TRAINERS.items()
        }
        for name, run in runs.items():
            logged = [line[LOGGED[0]] for line in read_jsonl(run / "metrics.jsonl") if LOGGED[0] in line]
            losses.setdefault(name, []).append(logged)
            if name != "one":
                found.setdefault(name, []).append(differences(run, runs["one"], given.steps))
    largest = {
        name: {key: max(each[key] for each in every) for key in every[0]} for name, every in found.items()
    }
    record = {
        "steps": given.steps,
        "ranks": given.ranks,
        "accelerator": given.accelerator,
        "seeds": given.seeds,
        "overrides": given.more,
        "load_average_before": round(load, 2),
        "environment": environment(torch.device("cuda" if given.accelerator == "gpu" else "cpu")),
        "largest": largest,
        "by_seed": found,
        "losses": losses,
    }
    given.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
