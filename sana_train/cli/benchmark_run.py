"""What ``cli.benchmark`` and ``cli.benchmark_peers`` have in common: the subject, the device, the files."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sana_train.cli import benchmark_cases as cases
from sana_train.cli.config import Node
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import load
from sana_train.cli.plan_rows import clip_size
from sana_train.cli.preflight import STARTED_S, check_overrides, leave_out_parts
from sana_train.cli.vae_choice import skeleton
from sana_train.evaluation.speed import tables
from sana_train.evaluation.speed.store import Results
from sana_train.evaluation.speed.turns import OUT_OF_MEMORY
from sana_train.models.flops import forward_flops, training_flops
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.callbacks.throughput import peak_flops
from sana_train.types import LatentSpec, VideoShape
from sana_train.utils.environment import environment
from sana_train.utils.files import publish_file

TABLE_FILE = "table.md"
_SIZE_2B = VideoShape(81, 704, 1280)  # the paper's


@dataclass(frozen=True)
class Subject:
    """A configured DiT and the clips that it is measured on.

    Attributes:
        node: the section ``model``.
        model: on meta.
        video, latent_shape: of a clip.
        kernels: the ways to compute, as ``model.kernels`` names them.
        spec: of the latent space.
    """

    node: Node
    model: SanaVideoDiT
    video: VideoShape
    latent_shape: tuple[int, int, int, int]
    kernels: tuple[str, ...]
    device: torch.device
    spec: LatentSpec

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.latent_shape[1], self.latent_shape[2], self.latent_shape[3]

    @property
    def num_context(self) -> int:
        return self.model.null_context.shape[0]

    def inputs(self, batch: int, latent_shape: Sequence[int] | None = None) -> cases.Inputs:
        context = tuple(self.model.null_context.shape)
        return cases.random_inputs(latent_shape or self.latent_shape, context, batch, self.device)

    def flops(self, group: str, batch: int) -> int:
        """Exact ones of a step, without what is computed again."""
        count = training_flops if group == "train" else forward_flops
        return batch * count(self.model, self.grid, self.num_context)

    def facts(self, what: str) -> dict[str, Any]:
        return {
            "what": what,
            **environment(self.device),
            "peak_flops": peak_flops(self.device),
            "model": dict(self.node),
            "clip": f"{self.video.height_px}x{self.video.width_px}x{self.video.frames}",
            "latent_shape": list(self.latent_shape),
            "num_tokens": cases.num_tokens(self.model, self.latent_shape),
            "num_context": self.num_context,
            "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    def headline(self) -> str:
        facts = self.facts("")
        return tables.headline({"facts": facts, "ceilings": None})

    def prepare_device(self) -> None:
        """As a training process sets it up: TF32 products, cuDNN looks for the fastest convolution."""
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def read_subject(overrides: Sequence[str], size: VideoShape | None, kernels: Sequence[str] | None) -> Subject:
    """What the command line asks for.

    Raises:
        ConfigError: overrides that do not make a configuration.
        ValueError: no DiT in it, or kernels that the model does not have.
    """
    config = load(check_overrides(leave_out_parts(overrides)))
    if config.model is None or config.autoencoder is None:
        raise ValueError(
            "a benchmark needs a DiT and its latent space: the sections `model` and `autoencoder`"
        )
    node = config.model
    with torch.device("meta"):
        model = instantiate(node)
    if not isinstance(model, SanaVideoDiT):
        raise ValueError(
            f"the benchmark is of a SanaVideoDiT; this configuration has a {type(model).__name__}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choices = cases.kernel_choices(node)
    unknown = sorted(set(kernels or ()) - set(choices))
    if unknown:
        raise ValueError(f"--kernels {' '.join(unknown)}: the model has {', '.join(choices)}")
    # A CPU has no fused kernels, and compiling for it takes minutes.
    chosen = tuple(kernels) if kernels else choices if device.type == "cuda" else choices[:1]
    video = size or (_SIZE_2B if config.scale == "2b" else clip_size(config))
    spec = skeleton(config.autoencoder).spec
    return Subject(node, model, video, spec.latent_shape(video), chosen, device, spec)


def is_late(minutes: int | None) -> bool:
    """Whether the process has run for so long, which is said once."""
    if minutes is None or time.monotonic() < STARTED_S + 60 * minutes:
        return False
    sys.stdout.write(f"{minutes} minutes are over; the same command measures the rows that are left\n")
    return True


def say(row: Mapping[str, Any]) -> None:
    """A finished row, at once: the process may be killed before the next."""
    name = " ".join(
        str(row[key]) for key in ("group", "batch", "recompute", "frames", "way") if row.get(key) is not None
    )
    number = row["error"] or f"{row['ms']:.2f} ms" + (
        f", {row['peak_gib']:.1f} GiB" if row["peak_gib"] else ""
    )
    sys.stdout.write(f"{name}: {number}\n")
    sys.stdout.flush()


def failures(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows without a number for another reason than memory, which is a result."""
    return [row for row in rows if row.get("error") and not row["error"].startswith(OUT_OF_MEMORY)]


def write_table(out: Path, text: str) -> None:
    with publish_file(out / TABLE_FILE) as scratch:
        scratch.write_text(text, encoding="utf-8")
    sys.stdout.write(f"\n{text}\nwritten to {out}\n")


def own_report(results: Results) -> str:
    """The record of ``benchmark`` as Markdown."""
    content = results.content
    return _document(
        "# Steps of the DiT",
        tables.headline(content),
        ("Training step", tables.steps_table(content, "train")),
        ("Optimisers alone", tables.optimiser_table(content)),
        ("Sharded over one device", tables.steps_table(content, "fsdp2", "one copy")),
        ("Where a training step's time goes, ms", tables.breakdown_table(content)),
        ("Evaluation with guidance", tables.steps_table(content, "denoise")),
        ("Cost against frames", tables.frames_table(content)),
    )


def peers_report(results: Results, peer: str) -> str:
    """The record of ``benchmark_peers`` as Markdown."""
    content = results.content
    return _document(
        f"# Beside {peer}",
        tables.headline(content),
        ("Outputs on the same weights", tables.outputs_table(content)),
        ("Training step", tables.steps_table(content, "train", peer)),
        ("Evaluation with guidance", tables.steps_table(content, "denoise", peer)),
    )


def _document(title: str, head: str, *sections: tuple[str, str]) -> str:
    """Sections without a table are left out."""
    parts = [title, head]
    for name, table in sections:
        if table:
            parts += [f"## {name}", table]
    return "\n\n".join(parts) + "\n"
