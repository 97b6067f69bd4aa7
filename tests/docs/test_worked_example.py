"""The worked example of docs/architecture.md: its file and its YAML are all that is needed."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from sana_train.cli import train
from sana_train.cli.load import compose_config

DOCUMENT = "docs/architecture.md"
SMALL = """
    data.train.source.num_clips=16 data.heldout.source.num_clips=2 latents.batch_size=8
    training.max_steps=2 training.global_batch=4 training.micro_batch=4 model.depth=1
    convergence.steps=[2] convergence.num_loss_clips=2 convergence.num_strips=1
    convergence.generator.schedule.num_steps=2 ~reader ~logger trainer.accelerator=cpu run_id=example
"""


def test_the_new_space_decodes_to_the_shape_it_encoded(place) -> None:
    place(DOCUMENT)
    from sana_train.autoencoders.block_mean import BlockMean  # type: ignore[import-not-found]

    space = BlockMean(8, 32)
    video = torch.rand(2, 3, 17, 128, 96) * 2 - 1
    latents = space.encode(video)
    assert latents.shape == (2, 3, 3, 4, 3)
    assert space.decode(latents).shape == video.shape
    torch.testing.assert_close(space.encode(space.decode(latents)), latents)


def test_a_dit_trains_in_it(place, documents, tmp_path: Path) -> None:
    place(DOCUMENT)
    (command,) = [block.text for block in documents[DOCUMENT] if block.note == "needs-example"]
    paths = [f"paths.{name}={tmp_path / name}" for name in ("runs", "data")]
    train.main(compose_config([*shlex.split(command)[2:], *SMALL.split(), *paths]))
    run = tmp_path / "runs" / "example"
    assert (run / "convergence.png").is_file()
    assert (run / "export" / "model.safetensors").is_file()
