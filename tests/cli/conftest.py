"""A whole adaptation at toy size: random weights of the real classes, saved as shipped ones are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sana_train.autoencoders.weights import save_autoencoder
from sana_train.cli import train
from sana_train.cli.config import RunConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import compose_config, load

# A module rather than fixtures, so that child processes can import it, too.
sys.path.insert(0, str(Path(__file__).parent))

TOY = (
    "autoencoder.encoder_widths=[8,8,8,16]",
    "autoencoder.decoder_widths=[8,8,16]",
    "source.autoencoder.widths=[8,8,8,8,8,8]",
    "model.depth=1",
    "model.width=48",
    "model.num_heads=2",
    "model.cross_num_heads=2",
    "data.train.source.num_clips=16",
    "data.heldout.source.num_clips=4",
    "latents.batch_size=8",
    "training.global_batch=4",
    "training.micro_batch=4",
    "training.max_steps=2",
    "trainer.log_every=1",
    "convergence.steps=[0,2,3]",
    "convergence.num_loss_clips=4",
    "convergence.num_strips=2",
    "convergence.reference=null",
    "convergence.generator.schedule.num_steps=2",
    "logger=csv",
    "~reader",
)


def save_random_parts(config: RunConfig) -> None:
    """Autoencoders with measured statistics, and a source DiT, where the configuration looks for them."""
    assert config.autoencoder is not None and config.source is not None and config.model is not None
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(2, 3, 17, 128, 128, generator=generator) * 2 - 1
    for node in (config.autoencoder, config.source.autoencoder):
        torch.manual_seed(0)
        autoencoder = instantiate({**node, "weights": None}).eval()
        autoencoder.measure_statistics([clips])
        save_autoencoder(autoencoder, Path(node["weights"]), {})
    model = instantiate({**config.model, **config.source.model})
    file = Path(config.source.checkpoint)
    file.parent.mkdir(parents=True)
    save_file(model.fresh_state(model.state_dict(), seed=7), file)


class Workplace:
    """A folder with weights, in which ``python train.py experiment=ltx_adapt`` can be run in-process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = [f"paths.{name}={root / name}" for name in ("runs", "data", "weights", "models")]
        save_random_parts(self.config())

    def overrides(self, more: Sequence[str]) -> list[str]:
        return [*TOY, *self.paths, *more]

    def config(self, *more: str) -> RunConfig:
        return load(compose_config(self.overrides(more)))

    def train(self, *more: str) -> None:
        train.main(compose_config(self.overrides(more)))

    def files(self, pattern: str) -> dict[Path, int]:
        """Matching files with their times of writing."""
        return {path: path.stat().st_mtime_ns for path in self.root.glob(pattern) if path.is_file()}


@pytest.fixture(scope="session")
def make_workplace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    return lambda: Workplace(tmp_path_factory.mktemp("workplace"))
