"""A checkpoint is a directory that appears whole, by rename.

    model.safetensors     weights as trained
    ema.safetensors       averaged weights, fp32
    training_state/       optimiser state (torch.distributed.checkpoint)
    run.json              step, run id, configuration, what wrote it
    SHA256SUMS            of all these files

Milestones leave out the training state. A directory named by its step was whole when it got that name, so
whatever it lacks is damage: it is reported, and never passed over for an older one.
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

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from sana_train.training.checksums import find_damage, forget, read_sums, write_sums
from sana_train.utils.files import is_scratch, publish_directory, write_json

_NAME = re.compile(r"step_(\d{7,})")
STATE = "training_state"
_GO_BACK = (
    "Go on with the code and the configuration that wrote it (run.json beside it), or start another run with "
    "run_id=<a new name>"
)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:07d}"


def save_checkpoint(
    target: Path,
    model: dict[str, Tensor],
    ema: dict[str, Tensor] | None,
    training_state: dict[str, Any] | None,
    run: dict[str, Any],
) -> None:
    """Write a checkpoint; ``training_state=None`` makes a weights-only milestone.

    Raises:
        OSError: it cannot be written, as on a full disk; nothing of it stays.
    """
    states = (model, ema or {}, (training_state or {}).get("optimiser", {}))
    num_bytes = sum(value.nbytes for state in states for value in state.values())
    with said_if_not_written(target, num_bytes), publish_directory(target) as scratch:
        write_weights(scratch, "model", model)
        if ema is not None:
            write_weights(scratch, "ema", ema)
        if training_state is not None:
            with single_process():
                dcp.save(training_state, checkpoint_id=scratch / STATE, no_dist=True)
        seal(scratch, run)


def write_weights(directory: Path, name: str, state: dict[str, Tensor]) -> None:
    """``name`` is ``model`` or ``ema``."""
    save_file(_on_cpu(state), directory / f"{name}.safetensors")


def seal(directory: Path, run: dict[str, Any]) -> None:
    """Write what a checkpoint says of itself: the last thing before it is published."""
    write_json(directory / "run.json", run)
    write_sums(directory)


@contextmanager
def said_if_not_written(target: Path, num_bytes: int) -> Iterator[None]:
    """Errors of writing the checkpoint ``target`` become one that says what there was room for.

    Raises:
        OSError: instead of what a writer raised.
    """
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        raise _not_written(target, num_bytes, error) from error


def _not_written(target: Path, num_bytes: int, error: BaseException) -> OSError:
    """What a disk without space looks like depends on the writer: torch's says that a position is off."""
    before = next((path for path in reversed(list_checkpoints(target.parents[1])) if path != target), None)
    free = shutil.disk_usage(next(folder for folder in target.parents if folder.exists())).free
    return OSError(
        f"the checkpoint {target} could not be written ({_cause(error)}); nothing of it was kept. It takes "
        f"{num_bytes / 2**30:.3f} GiB, {free / 2**30:.3f} GiB are free there now. Last one before it: "
        f"{before or 'none'}. Make room (also in a quota) and give the same command, which goes on from the "
        "last full checkpoint"
    )


def _cause(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # its own text is a traceback of every rank
        return "; ".join(str(failure[0]) for failure in error.failures.values())
    return str(error)


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


def load_exactly(file: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file, which are those of ``expected`` by name and shape.

    Raises:
        ValueError: naming the file and every tensor that differs.
    """
    found = load_file(file)
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} is {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in found.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if problems:
        raise ValueError(f"{file} is of another network: {'; '.join(problems)}. {_GO_BACK}")
    return found


def load_training_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Fill ``state`` (same structure and shapes as saved) in place.

    Raises:
        ValueError: the saved state is another.
    """
    try:
        with single_process():
            dcp.load(state, checkpoint_id=checkpoint / STATE, no_dist=True)
    except CheckpointException as error:  # no Exception of Python's, so nothing else would catch it
        raise ValueError(f"{checkpoint / STATE} cannot be restored ({_cause(error)}). {_GO_BACK}") from error


@contextmanager
def single_process() -> Iterator[None]:
    """DCP warns about ``no_dist`` even where it is asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def read_run(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "run.json").read_text())


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Published checkpoints by step, damaged ones too; scratch directories of a crash are not among them.

    Raises:
        OSError: the folder cannot be read.
    """
    folder = run_dir / "checkpoints"
    if not folder.exists():
        return []
    # Not `glob`, to which a folder that may not be read is an empty one.
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match.group(1))


def has_training_state(checkpoint: Path) -> bool:
    """Whether a run can go on from it: it is no milestone of weights alone.

    Raises:
        ValueError: the checkpoint is damaged so far that this cannot be said.
    """
    try:
        return any(name.startswith(f"{STATE}/") for name in read_sums(checkpoint))
    except ValueError as error:
        raise ValueError(_damaged(checkpoint, [str(error)])) from error


def latest_resumable(run_dir: Path) -> Path | None:
    """The last checkpoint that carries the training state, if any; its files are not looked at.

    Raises:
        ValueError: one at least as new is damaged so far that it cannot be told what it was.
    """
    return next((path for path in reversed(list_checkpoints(run_dir)) if has_training_state(path)), None)


def require_whole(checkpoint: Path) -> None:
    """Read every file of a checkpoint and hold it against ``SHA256SUMS``.

    Raises:
        ValueError: naming each file that is missing or changed, and how to go on from the one before.
    """
    try:
        problems = find_damage(checkpoint)
    except ValueError as error:
        problems = [str(error)]
    if problems:
        raise ValueError(_damaged(checkpoint, problems))


def _damaged(checkpoint: Path, problems: list[str]) -> str:
    older = [path for path in list_checkpoints(checkpoint.parents[1]) if step_of(path) < step_of(checkpoint)]
    full = [path.name for path in older if (path / STATE).is_dir()]
    from_there = f"from {full[-1]}" if full else "from step 0: no other full checkpoint is there"
    return (
        f"the checkpoint {checkpoint} is damaged: {'; '.join(problems)}. Nothing was restored. Put back what "
        "is missing or changed if you have a copy; otherwise move the directory away and give the same "
        f"command again, which then goes on {from_there}:\n  mv {checkpoint} {checkpoint}.damaged"
    )


def thin_out(run_dir: Path, keep_full: int, milestones: frozenset[int]) -> None:
    """Keep ``keep_full`` full checkpoints; older ones lose their training state or, off a milestone, go."""
    full = [path for path in list_checkpoints(run_dir) if _is_soundly(True, path)]
    for path in full[:-keep_full] if keep_full else full:
        if step_of(path) in milestones:
            forget(path, STATE)  # first: a kill in between leaves a milestone with a folder too many
            _remove(path / STATE, run_dir)
        else:
            _remove(path, run_dir)


def _remove(directory: Path, run_dir: Path) -> None:
    """Delete in one step: a kill leaves no half of a directory under its name."""
    hidden = Path(tempfile.mkdtemp(prefix=".gone.", dir=run_dir / "checkpoints"))
    os.replace(directory, hidden / directory.name)
    shutil.rmtree(hidden)


def remove_leftovers(run_dir: Path) -> None:
    """Delete what a killed process was writing or deleting; nothing else may be using the run."""
    half = [path for path in (*run_dir.glob(".*"), *run_dir.glob("*/.*")) if is_scratch(path)]
    for path in (*half, *(run_dir / "checkpoints").glob(".*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for path in list_checkpoints(run_dir):
        if (path / STATE).is_dir() and _is_soundly(False, path):
            _remove(path / STATE, run_dir)


def _is_soundly(full: bool, checkpoint: Path) -> bool:
    """Whether it is full, or a milestone; neither if it is damaged, which is for the user to look at."""
    try:
        return has_training_state(checkpoint) == full
    except ValueError:
        return False


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
