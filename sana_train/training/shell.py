"""The one Lightning module: it counts, optimises, averages and reports; a task does the rest.

Noise, time and dropout come from counters (seed, ordinal), so nothing here draws random numbers.
The loss is sum(weight * loss) / B with the nominal B: a hole of weight 0 contributes nothing, and
any split into ranks and micro-batches gives the same gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from sana_train.protocols import Task
from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.ema import Ema
from sana_train.training.optimiser import build_optimiser, clip_gradients, hold_back, set_step
from sana_train.types import Batch
from sana_train.utils.rng import SampleRng


class TrainingShell(pl.LightningModule):
    """Trains ``task.model``.

    Args:
        task: what is trained and on which loss.
        seed: of all counters.
        lr: learning rate after warm-up; constant from there.
        warmup_steps: optimiser steps of linear warm-up.
        betas: AdamW's.
        eps: AdamW's.
        weight_decay: AdamW's.
        clip_norm: global gradient norm above which gradients are scaled down.
        ema_decay: long-run decay of the averaged weights.
        log_every: optimiser steps between two logged training metrics.
        run_dir: where checkpoints lie.
        resume_from: full checkpoint to continue from, if any.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        lr: float,
        warmup_steps: int,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        clip_norm: float,
        ema_decay: float,
        log_every: int,
        run_dir: Path,
        resume_from: Path | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.model = task.model
        self.seed, self.lr, self.warmup_steps = seed, lr, warmup_steps
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.clip_norm, self.ema_decay, self.log_every = clip_norm, ema_decay, log_every
        self.run_dir, self.resume_from = run_dir, resume_from
        self.completed_steps = 0 if resume_from is None else ckpt.step_of(resume_from)
        self.paused_s = 0.0  # spent in callbacks, for honest throughput
        self.ema: Ema | None = None
        self._sums: dict[str, Tensor] = {}
        self._num_micro_batches = 0
        self._grad_norm: Tensor | None = None
        self._step_is_fresh = False

    def setup(self, stage: str) -> None:
        if self.resume_from is not None:
            self.model.load_state_dict(ckpt.load_weights(self.resume_from, prefer_ema=False))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.ema = Ema(self.model, self.ema_decay)
        optimiser = build_optimiser(
            self.task.parameter_groups(), self.lr, self.betas, self.weight_decay, self.eps
        )
        if self.resume_from is not None:
            self.ema.load_state_dict(
                {k: v.to(self.device) for k, v in ckpt.load_weights(self.resume_from).items()}
            )
            saved = set(ckpt.read_run(self.resume_from)["optimiser_keys"])
            state = {"optimiser": ckpt.prepare_optimiser_state(optimiser, saved)}
            ckpt.load_training_state(self.resume_from, state)
        return optimiser

    def on_fit_start(self) -> None:
        for module in self.task.frozen:
            module.to(self.device)

    def on_train_start(self) -> None:
        self._run_callbacks("on_run_start")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.task.step(batch, SampleRng(self.seed, batch.ordinals))
        weighted = {name: (value * batch.weight).sum() / len(batch) for name, value in losses.items()}
        for name, value in weighted.items():
            kept = self._sums.get(name)
            self._sums[name] = value.detach().clone() if kept is None else kept + value.detach()
        self._num_micro_batches += 1
        return weighted["loss"]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        live = hold_back(optimizer, self.completed_steps)
        self._grad_norm = clip_gradients(live, self.clip_norm)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        set_step(optimizer, self.completed_steps, self.lr, self.warmup_steps)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.completed_steps += 1
        assert self.ema is not None
        self.ema.update(self.completed_steps)
        self._step_is_fresh = True

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self._step_is_fresh:
            return
        self._step_is_fresh = False
        # On a GPU reading the loss waits for the device, so it is looked at only when it is logged.
        if self.completed_steps % self.log_every == 0 or self.device.type == "cpu":
            self._flush_losses()
        self._run_callbacks("on_step_end")

    def on_train_end(self) -> None:
        self._run_callbacks("on_run_end")

    def _flush_losses(self) -> None:
        if not self._num_micro_batches:
            return
        means = {name: (total / self._num_micro_batches).item() for name, total in self._sums.items()}
        self._sums, self._num_micro_batches = {}, 0
        self._require_finite(means["loss"])
        if self.completed_steps % self.log_every == 0:
            assert self._grad_norm is not None
            metrics = {f"train/{name}": value for name, value in means.items()}
            self.report({**metrics, "train/grad_norm": self._grad_norm.item(), "train/lr": self._current_lr()})

    def _require_finite(self, loss: float) -> None:
        if loss == loss and abs(loss) != float("inf"):
            return
        last = ckpt.latest_resumable(self.run_dir)
        raise FloatingPointError(
            f"the training loss became {loss} by step {self.completed_steps}; nothing was saved from it. "
            f"Last good checkpoint: {last or 'none yet'}. Try a smaller training.lr (now {self.lr}) or a "
            f"longer training.warmup_steps (now {self.warmup_steps})"
        )

    def check_finite(self) -> None:
        """Raise if a loss since the last look was not finite; called before anything is saved."""
        self._flush_losses()
        if not all(torch.isfinite(p).all() for p in self.model.parameters()):
            self._require_finite(float("nan"))

    def _current_lr(self) -> float:
        return max(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    def report(self, metrics: dict[str, float]) -> None:
        """Send metrics to every logger under the run's own step."""
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.completed_steps)

    def _run_callbacks(self, hook: str) -> None:
        started = time.perf_counter()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepCallback):
                getattr(callback, hook)(self, self.completed_steps)
        self.paused_s += time.perf_counter() - started

    def save_checkpoint(self, run: dict[str, Any], *, with_training_state: bool) -> Path:
        """Publish a checkpoint of the present step."""
        self.check_finite()
        assert self.ema is not None
        state = ckpt.optimiser_state(self.trainer.optimizers[0])
        target = ckpt.checkpoint_path(self.run_dir, self.completed_steps)
        ckpt.save_checkpoint(
            target,
            self.model.state_dict(),
            self.ema.state_dict(),
            {"optimiser": state} if with_training_state else None,
            {**run, "step": self.completed_steps, "optimiser_keys": sorted(state)},
        )
        return target
