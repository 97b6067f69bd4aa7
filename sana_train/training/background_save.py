"""Checkpoints of sharded state, written while training goes on.

A save copies this rank's shards to its CPU and returns. In the background every rank writes its shards into
one hidden directory (torch.distributed.checkpoint); when all are there, the first rank puts the weights
together as ``model.safetensors`` and ``ema.safetensors``, as one process would have written them, and
publishes the directory by its name. Whatever ends a process before that leaves the checkpoint before. The
first rank's CPU needs room for the weights once more, whole.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from sana_train.training import checkpoint as ckpt
from sana_train.training.gloo import gloo_group
from sana_train.training.staging import StagingMemory
from sana_train.utils.files import publish_directory

_SHARDS = "shards"  # of weights, until they are put together


class BackgroundSaver:
    """One save at a time, of all ranks of the job; to be made by all of them at once."""

    def __init__(self) -> None:
        # Of its own: what the background sends must not meet what training sends.
        self._group: Any = gloo_group()
        self._is_first = dist.get_rank() == 0
        self._memory = StagingMemory()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        target: Path,
        model: Mapping[str, Tensor],
        ema: Mapping[str, Tensor],
        optimiser: Mapping[str, Tensor] | None,
        run: dict[str, Any],
        published: Callable[[], object],
    ) -> None:
        """Start writing a checkpoint as it is now; waits for the one before.

        Args:
            target: where it appears.
            model: weights, sharded or the same on all ranks; so are those below.
            ema: averaged weights.
            optimiser: its state; None for a milestone of weights alone.
            run: for ``run.json``.
            published: called on the first rank as soon as the checkpoint is there.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        staged = self._memory.stage({"model": model, "ema": ema, "optimiser": optimiser or {}})
        is_full = optimiser is not None

        def write() -> None:
            try:
                self._write(target, staged, is_full, run, published)
            except BaseException as error:  # torch's own is no Exception; `wait` raises it where it is heard
                self._error = error

        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Whether this rank knows already that the last save could not be written; `wait` says why."""
        return self._error is not None

    def wait(self) -> None:
        """Until the last save is there, on every rank.

        Raises:
            OSError: it could not be written; on every rank, with the first rank's reason or another's.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        reasons: list[str | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(reasons, None if error is None else str(error), group=self._group)
        failed = next((reason for reason in reasons if reason is not None), None)
        if failed is not None:
            raise OSError(failed) from error

    def _write(
        self,
        target: Path,
        state: dict[str, dict[str, Tensor]],
        is_full: bool,
        run: dict[str, Any],
        published: Callable[[], object],
    ) -> None:
        num_bytes = sum(value.nbytes for part in state.values() for value in part.values())
        with ckpt.said_if_not_written(target, num_bytes), ExitStack() as hidden:
            scratch = self._scratch(target, hidden)
            weights = {name: state[name] for name in ("model", "ema")}
            dcp.save(weights, checkpoint_id=scratch / _SHARDS, process_group=self._group)
            if is_full:
                optimiser = {"optimiser": state["optimiser"]}
                dcp.save(optimiser, checkpoint_id=scratch / ckpt.STATE, process_group=self._group)
            if not self._is_first:
                return
            for name, part in weights.items():
                ckpt.write_weights(scratch, name, put_together(scratch / _SHARDS, name, part))
            shutil.rmtree(scratch / _SHARDS)
            ckpt.seal(scratch, run)
        if self._is_first:
            published()

    def _scratch(self, target: Path, hidden: ExitStack) -> Path:
        """The directory that all ranks write into, made by the first.

        Raises:
            OSError: it could not be made; on every rank, or the others would wait for it.
        """
        places: list[Path | OSError | None] = [None]
        if self._is_first:
            try:
                places = [hidden.enter_context(publish_directory(target))]
            except OSError as error:
                places = [error]
        dist.broadcast_object_list(places, group=self._group, group_src=0)
        if isinstance(places[0], OSError):
            raise places[0]
        assert places[0] is not None
        return places[0]


def put_together(shards: Path, name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part ``name`` of a saved state, whole, on the CPU.

    Args:
        shards: directory of torch.distributed.checkpoint.
        name: ``model`` or ``ema``.
        like: the same tensors, sharded.
    """
    whole = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in like.items()}
    with ckpt.single_process():
        dcp.load({name: whole}, checkpoint_id=shards, no_dist=True)
    return whole
