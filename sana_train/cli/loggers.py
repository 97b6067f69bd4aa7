"""The logger a configuration names, beside metrics.jsonl which is always written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sana_train.cli.config import RunConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.schema import TARGET
from sana_train.cli.targets import arguments_of, resolve_target
from sana_train.training.jsonl import read_jsonl

_IMAGES, _VIDEOS = (".png", ".jpg"), (".mp4", ".gif")


def build_loggers(config: RunConfig, run_dir: Path, run_id: str, start_step: int = 0) -> list[Any]:
    """The Lightning logger of ``config.logger`` (none if that is left out), with the configuration logged.

    It writes into ``run_dir`` under the run's id, so that a run resumed at ``start_step`` continues its
    own record.
    """
    if config.logger is None:
        return []
    if config.logger.get("offline", False):
        os.environ.setdefault("WANDB_SILENT", "true")  # its closing summary repeats ours
    takes = arguments_of(resolve_target(config.logger[TARGET]))
    ours: dict[str, Any] = {"save_dir": str(run_dir), "id": run_id, "name": run_id}
    supplied = {name: value for name, value in ours.items() if name in takes and name not in config.logger}
    if config.logger[TARGET].endswith(".TensorBoardLogger"):
        supplied["purge_step"] = start_step + 1 if start_step else 0  # what a killed process wrote past it
    logger = instantiate(config.logger, **supplied)
    # Lightning hands on an option that W&B has dropped and warns about.
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)
    logger.log_hyperparams(asdict(config))
    if config.logger[TARGET].endswith(".CSVLogger"):
        _restore_table(logger, run_dir / "metrics.jsonl", start_step)
    return [logger]


def _restore_table(logger: Any, history: Path, start_step: int) -> None:
    """Lightning's table begins anew in every process: put back the rows of the earlier ones."""
    if not start_step or not history.is_file():
        return
    for line in read_jsonl(history):
        step = line.pop("step")
        if step <= start_step:
            logger.log_metrics(line, step=step)
    logger.save()


def log_files(loggers: Sequence[Any], files: Mapping[str, Path], step: int) -> None:
    """Show videos and images by file where a logger can (W&B)."""
    for logger in loggers:
        if not hasattr(logger, "log_video"):
            continue
        for name, path in files.items():
            if path.suffix in _VIDEOS:
                logger.log_video(name, [str(path)], step, format=[path.suffix[1:]])
            elif path.suffix in _IMAGES:
                logger.log_image(name, [str(path)], step)


def final_metrics(judged: Mapping[str, Any], prefix: str = "heldout") -> dict[str, float]:
    """What a task says of its exported weights, under flat keys."""
    flat: dict[str, float] = {}
    for name, value in judged.items():
        key = f"{prefix}/{name}"
        flat |= final_metrics(value, key) if isinstance(value, Mapping) else {key: value}
    return flat


def log_final_metrics(loggers: Sequence[Any], judged: Mapping[str, Any] | None, step: int) -> None:
    """Show ``final_metrics`` where runs are compared (W&B); the others are closed when training ends."""
    metrics = final_metrics(judged or {})
    for logger in loggers:
        if metrics and hasattr(logger, "log_video"):
            logger.log_metrics(metrics, step=step)
