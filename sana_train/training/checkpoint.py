"""A checkpoint is a directory that appears whole, by rename.

    model.safetensors     weights as trained
    ema.safetensors       averaged weights, fp32
    training_state/       optimiser state and counters (torch.distributed.checkpoint)
    run.json              step, run id, configuration, what wrote it

Milestones leave out the training state. Only ``run.json``'s presence makes a directory a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor

from sana_train.utils.files import publish_directory, write_json

_NAME = re.compile(r"step_(\d{7})$")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:07d}"


def save_checkpoint(
    target: Path,
    model: dict[str, Tensor],
    ema: dict[str, Tensor] | None,
    training_state: dict[str, Any] | None,
    run: dict[str, Any],
) -> None:
    """Write a checkpoint; ``training_state=None`` makes a weights-only milestone."""
    with publish_directory(target) as scratch:
        save_file(_on_cpu(model), scratch / "model.safetensors")
        if ema is not None:
            save_file(_on_cpu(ema), scratch / "ema.safetensors")
        if training_state is not None:
            with _single_process():
                dcp.save(training_state, checkpoint_id=scratch / "training_state", no_dist=True)
        write_json(scratch / "run.json", {**run, "has_training_state": training_state is not None})


def load_weights(checkpoint: Path, prefer_ema: bool = True) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint directory, or the raw ones.

    Raises:
        FileNotFoundError: the directory is no checkpoint.
    """
    if not (checkpoint / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{checkpoint} is not a checkpoint of this project: it has no model.safetensors. Give a "
            "directory such as <run>/checkpoints/step_0000500"
        )
    ema = checkpoint / "ema.safetensors"
    return load_file(ema if prefer_ema and ema.is_file() else checkpoint / "model.safetensors")


def load_training_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Fill ``state`` (same structure and shapes as saved) in place."""
    with _single_process():
        dcp.load(state, checkpoint_id=checkpoint / "training_state", no_dist=True)


@contextmanager
def _single_process() -> Iterator[None]:
    """DCP warns about ``no_dist`` even where it is asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def read_run(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "run.json").read_text())


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Published checkpoints by step; scratch directories of a crash are not among them."""
    found = [
        path
        for path in (run_dir / "checkpoints").glob("step_*")
        if _NAME.search(path.name) and (path / "run.json").is_file()
    ]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    match = _NAME.search(checkpoint.name)
    assert match is not None
    return int(match.group(1))


def latest_resumable(run_dir: Path) -> Path | None:
    """The last checkpoint that carries the training state, if any."""
    full = [path for path in list_checkpoints(run_dir) if (path / "training_state").is_dir()]
    return full[-1] if full else None


def thin_out(run_dir: Path, keep_full: int, milestones: frozenset[int]) -> None:
    """Keep ``keep_full`` full checkpoints; older ones lose their training state or, off a milestone, go."""
    full = [path for path in list_checkpoints(run_dir) if (path / "training_state").is_dir()]
    for path in full[:-keep_full] if keep_full else full:
        if step_of(path) in milestones:
            _remove(path / "training_state", run_dir)
            write_json(path / "run.json", {**read_run(path), "has_training_state": False})
        else:
            _remove(path, run_dir)


def _remove(directory: Path, run_dir: Path) -> None:
    """Delete in one step: a kill leaves no half of a directory under its name."""
    hidden = Path(tempfile.mkdtemp(prefix=".gone.", dir=run_dir / "checkpoints"))
    os.replace(directory, hidden / directory.name)
    shutil.rmtree(hidden)


def remove_leftovers(run_dir: Path) -> None:
    """Delete what a killed process was writing or deleting; nothing else may be using the run."""
    for path in (run_dir / "checkpoints").glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Flat tensors of an optimiser by parameter position, so that DCP can fill them in place."""
    flat: dict[str, Any] = {}
    position = 0
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            state = optimiser.state.get(parameter)
            if state:
                for name, value in state.items():
                    flat[f"{position:04d}.{name}"] = value
            position += 1
    return flat


def prepare_optimiser_state(optimiser: torch.optim.Optimizer, saved_keys: set[str]) -> dict[str, Any]:
    """Empty moments for the parameters that had them when ``saved_keys`` were written."""
    names: dict[int, list[str]] = {}
    for key in sorted(saved_keys):
        position, name = key.split(".", 1)
        names.setdefault(int(position), []).append(name)
    position = 0
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            for name in names.get(position, []):
                optimiser.state[parameter][name] = _empty_moment(name, parameter, group)
            position += 1
    return optimiser_state(optimiser)


def _empty_moment(name: str, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """A moment has its parameter's shape; AdamW's step count is one number, on the GPU if fused."""
    if name != "step":
        return torch.zeros_like(parameter)
    on_device = group.get("fused") or group.get("capturable")
    return torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu")
