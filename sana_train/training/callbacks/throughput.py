"""Samples, tokens and FLOPs per second, memory, and how long training waited for data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from sana_train.training.callbacks.base import StepCallback
from sana_train.training.shell import TrainingShell
from sana_train.types import Batch

# Dense bf16 peaks in FLOP/s by data sheet and a part of the device's name; the first that fits counts.
PEAK_BF16_FLOPS = {
    "H200": 989.4e12,
    "H100 NVL": 835.0e12,
    "H100 PCIe": 756.0e12,
    "H100": 989.4e12,
    "H800": 989.4e12,
    "A100": 312.0e12,
    "A800": 312.0e12,
    "L40S": 362.1e12,
    "RTX 4090": 165.2e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of ``device``, or None where it is not known (a CPU among them)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in name), None)


class Work(NamedTuple):
    """Of one training sample: model FLOPs forward and backward, latent tokens."""

    flops: int
    tokens: int


WorkOf = Callable[[Batch], Work]  # of each sample of a batch


class ThroughputCallback(StepCallback):
    """Logs ``speed/*`` over windows of ``every`` steps; time inside ``shell.paused`` does not count.

    Args:
        every: optimiser steps per window.
        work_of: what each sample of a batch costs; None leaves tokens/s and MFU out.
    """

    def __init__(self, every: int, work_of: WorkOf | None) -> None:
        self.every, self.work_of = every, work_of
        self._reset_at: tuple[float, float] | None = None
        self._num_samples = self._num_flops = self._num_tokens = 0
        self._wait_s = 0.0
        self._batch_ended: tuple[float, float] | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._batch_ended is not None:
            ended, paused = self._batch_ended
            self._wait_s += time.perf_counter() - ended - (pl_module.paused_s - paused)
        num_samples = len(batch) * trainer.world_size
        self._num_samples += num_samples
        if self.work_of is not None:
            work = self.work_of(batch)
            self._num_flops += num_samples * work.flops
            self._num_tokens += num_samples * work.tokens

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self._batch_ended = (time.perf_counter(), pl_module.paused_s)

    def on_run_start(self, shell: TrainingShell, step: int) -> None:
        self._reset_at = None

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        # The first step holds compilation and lazy allocation; windows start after it.
        if self._reset_at is not None and step % self.every:
            self._batch_ended = (time.perf_counter(), shell.paused_s)
            return
        if shell.device.type == "cuda":
            torch.cuda.synchronize(shell.device)
        now = time.perf_counter()
        if self._reset_at is not None:
            started, paused = self._reset_at
            elapsed = now - started - (shell.paused_s - paused)
            shell.report(self._metrics(shell.device, elapsed, shell.trainer.world_size))
        self._reset_at = self._batch_ended = (now, shell.paused_s)
        self._num_samples = self._num_flops = self._num_tokens = 0
        self._wait_s = 0.0

    def _metrics(self, device: torch.device, elapsed_s: float, world_size: int) -> dict[str, float]:
        rate, wait_share = self._num_samples / elapsed_s, self._wait_s / elapsed_s
        metrics = {"speed/samples_per_s": rate, "speed/data_wait_share": wait_share}
        if self.work_of is not None:
            metrics["speed/tokens_per_s"] = self._num_tokens / elapsed_s
        peak = peak_flops(device)
        if peak is not None and self.work_of is not None:
            metrics["speed/mfu"] = self._num_flops / elapsed_s / (peak * world_size)
        if device.type == "cuda":
            metrics["speed/peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        return metrics
