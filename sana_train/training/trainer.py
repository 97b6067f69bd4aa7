"""The Lightning trainer as this project runs it: our checkpoints, our progress bar, our signals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.constants import default_pg_timeout

from sana_train.training.callbacks.base import StepCallback
from sana_train.training.determinism import set_determinism

StrategyName = Literal["ddp", "fsdp2", "hsdp"]
_PATIENCE_S = 60.0


def build_trainer(
    *,
    accelerator: str,
    devices: int | Literal["auto"],
    num_nodes: int,
    precision: str,
    num_steps: int,
    accumulation: int,
    loggers: Sequence[Logger],
    callbacks: Sequence[StepCallback],
    deterministic: bool = False,
    strategy: StrategyName = "ddp",
    stall_s: float | None = None,
) -> pl.Trainer:
    """A trainer for the next ``num_steps`` optimiser steps of a run.

    Args:
        strategy: ``ddp``, which is nothing at all on one rank, or one of those that shard the model.
        stall_s: after which a watchdog ends ranks without progress; None: they wait for half an hour.
    """
    set_determinism(deterministic)
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,  # type: ignore[arg-type]
        strategy=_strategy(strategy, stall_s),
        max_steps=num_steps,
        accumulate_grad_batches=accumulation,
        logger=list(loggers),
        callbacks=list(callbacks),
        plugins=_cluster(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        # Clips have one size: cuDNN may look for the fastest convolution once, but finds another each time.
        benchmark=not deterministic,
        deterministic=deterministic,
    )
    # Lightning's handler of SIGTERM sends to the other ranks, whatever they are about, and ends the process
    # inside a step. Signals are the business of StopAtStepEnd.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _strategy(name: StrategyName, stall_s: float | None) -> Strategy | str:
    # Whoever waits for a rank that stalls is to be ended by the watchdog, with its stack, not by this.
    timeout = default_pg_timeout if stall_s is None else timedelta(seconds=stall_s + _PATIENCE_S)
    if name != "ddp":
        return _Sharded(data_parallel_size=1, tensor_parallel_size=1, timeout=timeout)
    return "auto" if stall_s is None else DDPStrategy(timeout=timeout)


class _Sharded(ModelParallelStrategy):
    """Lightning's, for as many ranks as there are. What is sharded and how is the module's business."""

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def _cluster() -> ClusterEnvironment | None:
    """SLURM without Lightning's own requeueing and checkpoints; None lets Lightning find out."""
    return SLURMEnvironment(auto_requeue=False) if is_started_by_srun() else None


def is_started_by_srun() -> bool:
    """Whether every rank of this job is a task of srun, which sends signals to all of them."""
    return SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()


def adopt_srun() -> None:
    """Say in torchrun's variables which process of how many this is, if srun has started it."""
    is_of_srun = "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect()
    if not is_of_srun or "RANK" in os.environ:
        return
    slurm = SLURMEnvironment(auto_requeue=False)
    found = {"RANK": slurm.global_rank(), "WORLD_SIZE": slurm.world_size()}
    found |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": slurm.main_port}
    os.environ.update({name: str(value) for name, value in found.items()})


def is_global_zero() -> bool:
    """Whether this process writes files and talks; known before a trainer exists, from the environment."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]
