"""``python train.py``: build what the configuration names, train it, say what came of it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from sana_train.cli import banner
from sana_train.cli.config import RunConfig
from sana_train.cli.failure import failure_recorded
from sana_train.cli.fit import Fit, clips_record, pick_device
from sana_train.cli.load import load
from sana_train.cli.loggers import build_loggers, log_files, log_final_metrics
from sana_train.cli.out_of_memory import advice_when_out_of_memory
from sana_train.cli.parts import Parts
from sana_train.cli.process import EXIT_PREEMPTED, exit_when_preempted, one_of_a_sweep, readable_errors
from sana_train.cli.run_id import check_same_run, portable, require_same_run, run_id
from sana_train.cli.study import Study
from sana_train.cli.two_stage import two_stage_callbacks
from sana_train.cli.wanted import require_weights
from sana_train.data.bucket_report import bucket_record, bucket_table
from sana_train.data.buckets import BucketClips
from sana_train.evaluation.convergence.levels import means
from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.throughput import ThroughputCallback
from sana_train.training.determinism import set_determinism
from sana_train.training.trainer import is_global_zero


def main(cfg: DictConfig) -> None:
    """Run one experiment to ``training.max_steps``, going on from its last checkpoint if it has one."""
    console = Console(quiet=not is_global_zero())
    _quieten()
    with one_of_a_sweep(), readable_errors(), exit_when_preempted():
        config = load(cfg)
        name = run_id(cfg)
        run_dir = Path(config.paths.runs) / name
        device = pick_device(config.trainer.accelerator)
        torch.set_float32_matmul_precision("high")
        set_determinism(config.trainer.deterministic)
        banner.show(console, config, name, run_dir, device)
        config = require_weights(config)
        require_same_run(run_dir, cfg)
        facts = {"run_id": name, "config": portable(cfg)}
        with advice_when_out_of_memory(config, device), failure_recorded(run_dir):
            run(config, facts, run_dir, device, console, lambda: check_same_run(run_dir, cfg))


def run(
    config: RunConfig,
    facts: dict[str, Any],
    run_dir: Path,
    device: torch.device,
    console: Console,
    claim: Callable[[], None],
) -> None:
    """Everything after the checks.

    Args:
        facts: go into every record of the run.
        claim: takes the run's directory for this configuration. Called when everything is built, so
            that a file which cannot be read leaves the run id free for the corrected command.
    """
    torch.compiler.reset()  # a sweep runs many jobs in one process, and compiled code is kept by source line
    parts = Parts(config, device)
    task = parts.task()
    if is_global_zero():  # which alone draws them
        parts.require_source_samples()
    train, heldout = parts.clips_for(task)
    facts |= {**parts.provenance(), "clips": clips_record(parts.pixels[0], train)}
    if isinstance(train, BucketClips):
        facts["batches"] = bucket_record(train, config.training.global_batch, config.training.micro_batch)
        console.print(bucket_table(facts["batches"]), highlight=False, soft_wrap=True)
    fit = Fit(config, task, train, heldout, run_dir, facts, console, parts.sharding)
    if fit.start_step:
        console.print(f"going on from step {fit.start_step}", highlight=False)
    elif (run_dir / "metrics.jsonl").is_file():  # killed before it saved, or its checkpoints were taken away
        console.print(f"no full checkpoint in {run_dir}: starting again from step 0", highlight=False)
    if not fit.start_step and config.adaptation is not None:
        console.print(str(parts.load_report), highlight=False, soft_wrap=True)
    throughput = ThroughputCallback(config.trainer.log_every, parts.work_of_samples(task))
    loggers = build_loggers(config, run_dir, facts["run_id"], fit.start_step)
    study = None
    if config.convergence is not None:
        study = Study(config, parts, train, heldout, run_dir, console, loggers)
    two_stage = two_stage_callbacks(parts, facts, run_dir, loggers)
    claim()
    completed = fit([*(study.callbacks if study else []), *two_stage, throughput], loggers)
    if not fit.is_over(completed):
        console.print(f"stopped at step {completed}; the same command goes on from there")
        if fit.was_preempted:
            sys.exit(EXIT_PREEMPTED)
        return
    if not is_global_zero():
        return
    final = ckpt.checkpoint_path(run_dir, completed)
    if parts.is_sharded:
        task.model = parts.model.to_empty(device=device)
    task.model.load_state_dict(ckpt.load_weights(final))
    _round_weights(task.model.to(device).eval())
    record = {**facts, "steps": completed, "environment": fit.environment()}
    if study is None:
        judged = task.export(run_dir / "export", train, heldout, record)
        log_final_metrics(loggers, judged, completed)
    else:
        measured, files = study.measure(), study.draw()
        record |= {**parts.provenance(), "heldout": means(measured)}
        task.export(run_dir / "export", train, heldout, record)
        study.conclude(measured)
        log_files(loggers, files, completed)
    banner.done(console, run_dir, completed, config)


@torch.no_grad()
def _round_weights(model: nn.Module) -> None:
    """Round the parameters to bf16, as exports hold them: what is measured is what is published."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


def _quieten() -> None:
    """Keep back what tells a user of this command nothing that they could act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    # Depthwise kernels have two equivalent memory layouts, and DDP remarks on it.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # Nothing computes in place on what a block returns, which FSDP warns of at every block of every step.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
