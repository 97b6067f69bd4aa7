"""The one Lightning module: it counts, optimises, averages and reports; a task does the rest.

Noise, time and dropout come from counters (seed, ordinal), so nothing here draws random numbers.
The loss is sum(weight * loss) / B with the nominal B: a hole of weight 0 contributes nothing, and
any split into ranks and micro-batches gives the same gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sana_train.protocols import Task
from sana_train.training import checkpoint as ckpt
from sana_train.training.background_save import BackgroundSaver
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.ema import Ema
from sana_train.training.optimiser import OptimiserName, build_optimiser, clip_gradients, hold_back, set_step
from sana_train.training.optimiser_state import (
    optimiser_state,
    parameter_names,
    prepare_optimiser_state,
    require_same_parameters,
    take_over_counts,
)
from sana_train.training.sharding import Sharding, fill_whole, groups_of, sharded_copy
from sana_train.types import Batch
from sana_train.utils.rng import SampleRng
from sana_train.utils.shards import gathered, local, write_part


class TrainingShell(pl.LightningModule):
    """Trains ``task.model``.

    Args:
        task: what is trained and on which loss.
        seed: of all counters.
        optimiser: ``adamw``, ``adamw_8bit``, or ``muon`` for the matrices beside AdamW.
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
        sharding: how ``task.model``, which is then on ``meta``, is spread over the ranks; None: it is not.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        optimiser: OptimiserName,
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
        sharding: Sharding | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.model = task.model
        self.sharding = sharding
        self._whole: list[nn.Module] = []  # the unsharded model; in a list, or it were a sub-module of this
        self.optimiser: OptimiserName = optimiser
        self.seed, self.lr, self.warmup_steps = seed, lr, warmup_steps
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.clip_norm, self.ema_decay, self.log_every = clip_norm, ema_decay, log_every
        self.run_dir, self.resume_from = run_dir, resume_from
        self.completed_steps = 0 if resume_from is None else ckpt.step_of(resume_from)
        self.paused_s = 0.0  # spent inside `paused`, for honest throughput
        self.ema: Ema | None = None
        self._saver: BackgroundSaver | None = None  # of a sharded model
        self._step_sums: dict[str, Tensor] = {}  # losses over the micro-batches of the present step
        self._num_micro_batches = 0
        self._window_sums: dict[str, Tensor] = {}  # means of the steps since the last log
        self._num_window_steps = 0
        self._grad_norm: Tensor | None = None
        self._step_is_fresh = False

    def configure_model(self) -> None:
        self._require_one_start()
        if self.sharding is not None:
            self._whole = [self.model]
            device, use_bf16 = self.trainer.strategy.root_device, self.trainer.precision == "bf16-mixed"
            self.model = sharded_copy(self.model, self.sharding, device, use_bf16=use_bf16)
            self.task.model = self.model
            self._saver = BackgroundSaver()
            if self.resume_from is None:
                self.sharding.fill(self.model)
        if self.resume_from is not None:
            state = self.model.state_dict()
            saved = ckpt.load_exactly(self.resume_from / "model.safetensors", state)
            for name, value in state.items():
                write_part(value, saved[name])

    def _require_one_start(self) -> None:
        """Ranks look for the last checkpoint by themselves, and a file system may tell them different things.

        Raises:
            RuntimeError: they did not find the same.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        steps: list[int] = [0] * dist.get_world_size()
        dist.all_gather_object(steps, self.completed_steps)
        if len(set(steps)) > 1:
            raise RuntimeError(
                f"ranks found checkpoints of different steps in {self.run_dir / 'checkpoints'}: {steps}, by "
                "rank. Nothing was changed; give the same command again when all nodes see the same files"
            )

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups = self.task.parameter_groups()
        return groups_of(self.model, self._whole[0], groups) if self._whole else groups

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.ema = Ema(self.model, self.ema_decay)
        optimiser = build_optimiser(
            self._parameter_groups(), self.lr, self.betas, self.weight_decay, self.eps, self.optimiser
        )
        if self.resume_from is not None:
            averages = ckpt.load_exactly(self.resume_from / "ema.safetensors", self.ema.state_dict())
            self.ema.load_state_dict(averages)
            run = ckpt.read_run(self.resume_from)
            names = parameter_names(optimiser, self.model)
            require_same_parameters(run["optimiser_parameters"], names, str(self.resume_from))
            state = {"optimiser": prepare_optimiser_state(optimiser, set(run["optimiser_keys"]))}
            ckpt.load_training_state(self.resume_from, state)
            take_over_counts(optimiser, state["optimiser"])
            self._num_window_steps = run["window"]["num_steps"]
            sums = run["window"]["sums"]
            self._window_sums = {k: torch.tensor(v, device=self.device) for k, v in sums.items()}
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
            _add(self._step_sums, name, value.detach())
        _add(self._step_sums, "hole_share", (batch.weight == 0).float().mean())
        self._num_micro_batches += 1
        return weighted["loss"]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        live = hold_back(optimizer, self.completed_steps)
        self._grad_norm = gathered(clip_gradients(live, self.clip_norm))

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        set_step(optimizer, self.completed_steps, self.lr, self.warmup_steps)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.completed_steps += 1
        assert self.ema is not None
        self.ema.update(self.completed_steps)
        for name, total in self._step_sums.items():
            _add(self._window_sums, name, total / self._num_micro_batches)
        self._num_window_steps += 1
        self._step_sums, self._num_micro_batches = {}, 0
        self._step_is_fresh = True

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self._step_is_fresh:
            return
        self._step_is_fresh = False
        # On a GPU reading the loss waits for the device, so it is looked at only when it is logged.
        is_logged = self.completed_steps % self.log_every == 0
        if is_logged or self.device.type == "cpu":
            self._require_finite_loss()
        if is_logged:
            self._log_window()
        self._run_callbacks("on_step_end")

    def on_train_end(self) -> None:
        self._run_callbacks("on_run_end")

    @contextmanager
    def averages_shown(self) -> Iterator[None]:
        """Inside the block the task's model, as others know it, computes with the averages; for every rank.

        A sharded model is put together for that on the first rank, which must have the memory.
        """
        assert self.ema is not None
        if not self._whole:
            with self.ema.swapped_in():
                yield
            return
        with fill_whole(self._whole[0], self.ema.state_dict(), self.device, self.trainer.is_global_zero):
            yield

    def _window_totals(self) -> dict[str, float]:
        """The window's sums averaged over ranks, from which every rank of a resumed run goes on."""
        reduce = self.trainer.strategy.reduce
        return {name: float(reduce(total, reduce_op="mean")) for name, total in self._window_sums.items()}

    def _window_means(self) -> dict[str, float]:
        """Losses per step since the last log, over all ranks."""
        return {name: total / self._num_window_steps for name, total in self._window_totals().items()}

    def _log_window(self) -> None:
        assert self._grad_norm is not None
        metrics = {f"train/{name}": value for name, value in self._window_means().items()}
        self.report({**metrics, "train/grad_norm": self._grad_norm.item(), "train/lr": self._current_lr()})
        self._window_sums, self._num_window_steps = {}, 0

    def _require_finite_loss(self) -> None:
        loss = self._window_means().get("loss", 0.0)
        if not math.isfinite(loss):
            raise self._not_finite(f"the training loss became {loss}")

    def check_finite(self) -> None:
        """Raise if a loss since the last look or a weight is not finite; called before anything is saved."""
        self._require_finite_loss()
        is_finite = all(bool(torch.isfinite(local(p)).all()) for p in self.model.parameters())
        if not self.trainer.strategy.reduce_boolean_decision(is_finite, all=True):
            raise self._not_finite("a weight became NaN or infinite")

    def _not_finite(self, what: str) -> FloatingPointError:
        last = ckpt.latest_resumable(self.run_dir)
        return FloatingPointError(
            f"{what} by step {self.completed_steps}; nothing was saved from it. "
            f"Last good checkpoint: {last or 'none yet'}. Try a smaller training.lr (now {self.lr}) or a "
            f"longer training.warmup_steps (now {self.warmup_steps})"
        )

    def _current_lr(self) -> float:
        return max(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    def report(self, metrics: dict[str, float]) -> None:
        """Send metrics to every logger under the run's own step."""
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.completed_steps)

    def note(self, name: str, text: str) -> None:
        """Leave a line in the summary of every logger that has one (W&B)."""
        for logger in self.trainer.loggers:
            if hasattr(logger, "log_video"):
                logger.experiment.summary.update({name: text})  # type: ignore[attr-defined]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block is not training time; callbacks do their slow work in here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # steps still queued are training
        started = time.perf_counter()
        try:
            yield
        finally:
            self.paused_s += time.perf_counter() - started

    def _run_callbacks(self, hook: str) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepCallback):
                getattr(callback, hook)(self, self.completed_steps)

    def save_checkpoint(
        self, run: dict[str, Any], *, with_training_state: bool, published: Callable[[], object]
    ) -> None:
        """Check the weights on every rank and publish a checkpoint of the present step.

        Of a sharded model it is published later, while training goes on; `finish_saving` waits for that.

        Args:
            run: for its ``run.json``.
            with_training_state: or a milestone of weights alone.
            published: called on the first rank, which publishes, when it is there.
        """
        self.check_finite()
        sums = self._window_totals()
        assert self.ema is not None
        optimiser = self.trainer.optimizers[0]
        state = optimiser_state(optimiser)
        target = ckpt.checkpoint_path(self.run_dir, self.completed_steps)
        model, ema = self.model.state_dict(), self.ema.state_dict()
        run = {
            **run,
            "step": self.completed_steps,
            "optimiser_keys": sorted(state),
            "optimiser_parameters": parameter_names(optimiser, self.model),
            "window": {"num_steps": self._num_window_steps, "sums": sums},
        }
        moments = state if with_training_state else None
        if self._saver is not None:
            self._saver.save(target, model, ema, moments, run, published)
            return
        if self.trainer.is_global_zero:
            training_state = None if moments is None else {"optimiser": moments}
            ckpt.save_checkpoint(target, model, ema, training_state, run)
            published()
        # No rank computes on, or ends, while the files are still being written.
        self.trainer.strategy.barrier("checkpoint")

    @property
    def save_has_failed(self) -> bool:
        """Whether a checkpoint could not be written in the background, as far as this rank knows."""
        return self._saver is not None and self._saver.has_failed

    def finish_saving(self) -> None:
        """Wait until every checkpoint is published; for every rank.

        Raises:
            OSError: the last one could not be written.
        """
        if self._saver is not None:
            self._saver.wait()


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    # Never in place: under CUDA graphs the value's memory is written again by the next step.
    sums[name] = sums[name] + value if name in sums else value.clone()
