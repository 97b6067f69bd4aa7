"""What a run that is out of memory is told: what was to fit, and the row that would."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sana_train.cli.config import RunConfig
from sana_train.cli.plan import head, table
from sana_train.cli.plan_rows import GIB, Machine, Planner, all_cases, best_that_fits, change_to, predictions
from sana_train.training.callbacks.throughput import PEAK_BF16_FLOPS
from sana_train.training.trainer import is_global_zero

_GIB_OF_AN_H100 = 78.0


@contextmanager
def advice_when_out_of_memory(config: RunConfig, device: torch.device) -> Iterator[None]:
    """``torch.OutOfMemoryError`` inside the block ends the process with code 1, the plan, and what to change.

    Nothing is counted before, and by the first rank alone; with HYDRA_FULL_ERROR=1 the error stays as it is.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        reason = str(error).splitlines()[0]
        # Outside of the `except` the tensors of the failed step are let go.
    else:
        return
    if not is_global_zero():
        sys.exit(f"out of memory ({reason}); the first rank says what would fit")
    sys.exit(f"out of memory: {reason}\n\n{advice(config, device)}")


def advice(config: RunConfig, device: torch.device) -> str:
    """The table of ``cli.plan`` for this machine, and the changes with which the same command goes on."""
    try:
        planner = Planner(config, machine_of(device))
    except ValueError as error:  # another task than a DiT's, or clips of unknown size
        return (
            f"What would fit cannot be counted ({error}). A smaller training.micro_batch holds fewer clips "
            f"at once, now {config.training.micro_batch}; results stay the same"
        )
    own = planner.own
    batches = sorted({batch for batch in (1, own.micro_batch // 2, own.micro_batch) if batch})
    found = predictions(planner, all_cases(batches))
    best = best_that_fits(found, own, planner.machine.gib, below=found[own].memory.peak)
    counted = f"{head(planner)}\n\n{table(planner, found)}"
    if best is None:
        cure = "No row of these fits. Take smaller clips, or more GPUs that share the weights: trainer=fsdp2"
    else:
        cure = (
            f"{change_to(best)} would fit, at {found[best].memory.peak / GIB:.1f} GiB counted: give the same "
            "command with it. It goes on from the last checkpoint, since neither changes the results"
        )
    return (
        f"{counted}\n\n{cure}. Frozen encoders are not counted; latents.mode=precomputed needs none of them."
    )


def machine_of(device: torch.device) -> Machine:
    """The one that this process runs on; for a CPU, an H100."""
    num_gpus = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type != "cuda":
        return Machine("H100", _GIB_OF_AN_H100, num_gpus)
    properties = torch.cuda.get_device_properties(device)
    chip = next((name for name in PEAK_BF16_FLOPS if name in properties.name), "H100")
    per_node = max(1, torch.cuda.device_count())
    return Machine(chip, properties.total_memory / GIB, num_gpus, per_node)
