"""The Lightning trainer as this project runs it: our checkpoints, our progress bar, our signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from sana_train.training.callbacks.base import StepCallback
from sana_train.training.determinism import set_determinism


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
) -> pl.Trainer:
    """A trainer for the next ``num_steps`` optimiser steps of a run."""
    set_determinism(deterministic)
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,  # type: ignore[arg-type]
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


def _cluster() -> ClusterEnvironment | None:
    """SLURM without Lightning's own requeueing and checkpoints; None lets Lightning find out."""
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return SLURMEnvironment(auto_requeue=False)
    return None


def is_global_zero() -> bool:
    """Whether this process writes files and talks; known before a trainer exists, from the environment."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]
