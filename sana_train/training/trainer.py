"""The Lightning trainer as this project runs it: our checkpoints, our progress bar, stop at a step's end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import Logger

from sana_train.training.callbacks.base import StepCallback


def build_trainer(
    *,
    accelerator: str,
    devices: int | Literal["auto"],
    num_nodes: int,
    precision: str,
    num_steps: int,
    max_minutes: float | None,
    accumulation: int,
    loggers: Sequence[Logger],
    callbacks: Sequence[StepCallback],
) -> pl.Trainer:
    """A trainer for the next ``num_steps`` optimiser steps of a run, or ``max_minutes`` of them."""
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,  # type: ignore[arg-type]
        max_steps=num_steps,
        max_time=None if max_minutes is None else timedelta(minutes=max_minutes),
        accumulate_grad_batches=accumulation,
        logger=list(loggers),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        benchmark=True,  # clips have one size: cuDNN may look for the fastest convolution once
    )


class StopAtStepEnd:
    """Inside the block the first Ctrl-C ends the run after the present step; the second at once.

    Args:
        trainer: to stop.
        say: tells the user.
    """

    def __init__(self, trainer: pl.Trainer, say: Callable[[str], object]) -> None:
        self.trainer, self.say = trainer, say
        self._previous: Any = None

    def __enter__(self) -> None:
        self._previous = signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.say("stopping after this step and saving; Ctrl-C again to stop at once")
        self.trainer.should_stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
