"""What a run says about itself at its start and at its end."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from sana_train.cli.config import RunConfig

_GPU_PRESET = "experiment=record/adapt"
_RESULTS = {
    "convergence.png": "loss curve and visual progression",
    "samples.mp4": "prompt -> video, source model to last step",
    "metrics.jsonl": "every logged number",
    "export": "averaged weights as safetensors, with their record",
    "checkpoints": "to go on from",
}


def show(console: Console, config: RunConfig, run_id: str, run_dir: Path, device: torch.device) -> None:
    """The opening panel: what runs, at which scale, how large, and how to get the real thing."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in _facts(config, run_dir, device).items():
        table.add_row(name, text)
    console.print(Panel(table, title=f"sana-train  {run_id}", title_align="left"))


def _facts(config: RunConfig, run_dir: Path, device: torch.device) -> dict[str, str]:
    training = config.training
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    if device.type == "cpu" and config.scale != "tiny":
        name += ": too slow and too small for published widths; torch sees no GPU, or trainer.accelerator=cpu"
    other = (
        "the whole method at small widths; scale=2b says what SANA-Video 2B wants"
        if config.scale == "tiny"
        else "published widths and weights; scale=tiny needs none"
    )
    batch = f"{training.global_batch} clips per step"
    if training.micro_batch < training.global_batch:
        batch += f", {training.micro_batch} at a time"
    is_small = config.scale == "tiny" and config.name != "record/adapt"
    if device.type == "cpu" and config.convergence is not None and is_small:
        batch += f"; smaller than a GPU run's 256 ({_GPU_PRESET}), so recovery takes more steps here"
    return {
        "experiment": config.name,
        "scale": f"scale={config.scale}: {other}",
        "device": name,
        "global batch": batch,
        "steps": f"up to {training.max_steps}; training.max_steps={10 * training.max_steps} goes on",
        "run": str(run_dir),
    }


def done(console: Console, run_dir: Path, completed: int, config: RunConfig) -> None:
    """The closing table of what lies where in the run's directory."""
    console.print(
        f"[bold]{config.name}[/bold] at step {completed}, in {run_dir}:", soft_wrap=True, highlight=False
    )
    table = Table.grid(padding=(0, 2))
    for name, text in _RESULTS.items():
        if (run_dir / name).exists():
            table.add_row(f"  {name}", text)
    console.print(table)
