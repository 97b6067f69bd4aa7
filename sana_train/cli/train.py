"""``python train.py``: build what the configuration names, train it, say what came of it."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console

from sana_train.cli import banner
from sana_train.cli.config import RunConfig
from sana_train.cli.fit import Fit, describe, pick_device
from sana_train.cli.load import load
from sana_train.cli.loggers import build_loggers, log_files
from sana_train.cli.parts import Parts
from sana_train.cli.process import EXIT_PREEMPTED, exit_when_preempted, readable_errors
from sana_train.cli.run_id import check_same_run, run_id
from sana_train.cli.study import Study
from sana_train.cli.weights import require_weights
from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.throughput import ThroughputCallback
from sana_train.training.trainer import is_global_zero


def main(cfg: DictConfig) -> None:
    """Run one experiment to ``training.max_steps``, going on from its last checkpoint if it has one."""
    console = Console(quiet=not is_global_zero())
    _quieten()
    with readable_errors(), exit_when_preempted():
        config = load(cfg)
        name = run_id(cfg)
        run_dir = Path(config.paths.runs) / name
        device = pick_device(config.trainer.accelerator)
        torch.set_float32_matmul_precision("high")
        banner.show(console, config, name, run_dir, device)
        config = require_weights(config)
        check_same_run(run_dir, cfg)
        run(config, name, run_dir, device, console)


def run(config: RunConfig, name: str, run_dir: Path, device: torch.device, console: Console) -> None:
    """Everything after the checks."""
    parts = Parts(config, device)
    task = parts.task()
    train, heldout = parts.clips_for(task)
    fit = Fit(config, task, train, heldout, run_dir, describe(config, name), console)
    if fit.start_step:
        console.print(f"going on from step {fit.start_step}", highlight=False)
    elif config.adaptation is not None:
        console.print(str(parts.load_report), highlight=False, soft_wrap=True)
    throughput = ThroughputCallback(config.trainer.log_every, *parts.work_per_sample(task, train))
    study = None if config.convergence is None else Study(config, parts, train, heldout, run_dir, console)
    loggers = build_loggers(config, run_dir, name, fit.start_step)
    completed = fit([*(study.callbacks if study else []), throughput], loggers)
    if fit.was_preempted or completed < config.training.max_steps:
        console.print(f"stopped at step {completed}; the same command goes on from there")
        if fit.was_preempted:
            sys.exit(EXIT_PREEMPTED)
        return
    if not is_global_zero():
        return
    final = ckpt.checkpoint_path(run_dir, completed)
    task.model.load_state_dict(ckpt.load_weights(final))
    task.model.to(device).eval()
    record = {**describe(config, name), "steps": completed, "environment": fit.environment()}
    task.export(run_dir / "export", train, heldout, record)
    if study is not None:
        log_files(loggers, study.finish(), completed)
    banner.done(console, run_dir, completed, config)


def _quieten() -> None:
    """Keep back what tells a user of this command nothing that they could act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    # Depthwise kernels have two equivalent memory layouts, and DDP remarks on it.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
