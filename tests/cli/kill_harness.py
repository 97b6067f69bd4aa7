"""A toy adaptation as a process of its own that SIGKILL ends at a chosen point. Importable by children."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

children = multiprocessing.get_context("forkserver")
children.set_forkserver_preload(["torch.distributed.checkpoint", "kill_harness", "sana_train.cli.train"])

# A change of a file under the run's root, and how often it came before in this process.
Point = tuple[str, int]

_TOUCHES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"}
_RANDOM = re.compile(r"\.[0-9a-f]{16}|\.gone\.\w+")  # in names of scratch files


class FileChanges:
    """Counts what this process does to files under ``root``, and dies just before the change at ``kill_at``.

    Between two such changes a run leaves nothing behind, so these are all the states in which a kill can
    leave it, except a write that is cut (tests/training/test_jsonl.py has that).
    """

    def __init__(self, root: Path, kill_at: Point | None) -> None:
        self.root, self.kill_at, self.pid = str(root), kill_at, os.getpid()
        self.points: list[Point] = []
        self._counts: Counter[str] = Counter()
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _TOUCHES or not str(arguments[0]).startswith(self.root) or os.getpid() != self.pid:
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        name = f"{event} {_RANDOM.sub('.*', str(arguments[0])[len(self.root) :])}"
        point = (name, self._counts[name])
        self._counts[name] += 1
        self.points.append(point)
        if point == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until(overrides: Sequence[str], root: Path, kill_at: Point | None) -> None:
    """``python train.py <overrides>`` in this process.

    What each sample of a step is made of is added to ``<root>/draws``; the points of a run that was not
    killed are in ``<root>/points``.
    """
    import torch

    from sana_train.cli import train
    from sana_train.cli.load import compose_config
    from sana_train.training.tasks.flow import FlowTask

    # As in the real command: data workers are this process's own children and notice when it is gone.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    sys.stdout = (root / "said").open("a")
    _watch_draws(FlowTask, (root / "draws").open("a", buffering=1))
    changes = FileChanges(root, kill_at)
    train.main(compose_config(list(overrides)))
    (root / "points").write_text(json.dumps(changes.points))


def _watch_draws(task: Any, file: Any) -> None:
    """Let ``task`` add a line for each sample: its ordinal, and a hash of everything that it trains on."""
    from sana_train.utils.hashing import tensors_hash

    step: Callable[..., Any] = task.step
    plain_loss: Callable[..., Any] = task._plain_loss
    ordinals: list[int] = []

    def watched_step(self: Any, batch: Any, rng: Any) -> Any:
        ordinals[:] = rng.ordinals.tolist()
        return step(self, batch, rng)

    def watched_loss(self: Any, *tensors: Any) -> Any:
        names = ("latents", "noise", "t", "context", "mask")
        for row, ordinal in enumerate(ordinals):
            drawn = {name: tensor[row] for name, tensor in zip(names, tensors, strict=True)}
            file.write(f"{ordinal} {tensors_hash(drawn)}\n")
        return plain_loss(self, *tensors)

    task.step, task._plain_loss = watched_step, watched_loss
