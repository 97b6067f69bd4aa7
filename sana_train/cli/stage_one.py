"""A DiT that was trained, ready to sample: what `cli.sample` and evaluate.py build alike."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from sana_train.cli.artifact import Artifact
from sana_train.cli.config import RunConfig
from sana_train.cli.fit import pick_precision
from sana_train.cli.instantiate import instantiate
from sana_train.cli.parts import Parts
from sana_train.generation.stage_one import StageOne
from sana_train.models.checkpoint import load_dit
from sana_train.protocols import Denoiser


def generator_node(config: RunConfig) -> dict[str, Any]:
    """Sampler, schedule and guidance, which validation in training uses too."""
    if config.convergence is None:
        raise ValueError("sampling needs the section `convergence` for its generator; leave it in")
    return config.convergence.generator


def check_fits(artifact: Artifact, parts: Parts) -> None:
    """Hold what a DiT was trained with against a configuration's autoencoder and text encoder.

    Raises:
        ValueError: it lives in another space, or reads other captions.
    """
    ours, theirs = parts.autoencoder.fingerprint(), artifact.space["fingerprint"]
    if ours != theirs:
        raise ValueError(
            f"the DiT lives in the space of autoencoder {theirs} ({artifact.space['autoencoder']}), this "
            f"configuration's is {ours}; choose its own with autoencoder=<option> or scale=<scale>"
        )
    given = parts.text_encoder.max_tokens, parts.text_encoder.dim
    read = artifact.model["max_tokens"], artifact.model["caption_dim"]
    if given != read:
        raise ValueError(
            f"the text encoder gives {given[0]} tokens of width {given[1]}, the DiT reads {read[0]} of "
            f"{read[1]}; choose the one it was trained with, text=<option>"
        )


def load_stage_one(artifact: Artifact, parts: Parts) -> StageOne:
    """The artifact's DiT on the device of ``parts``, with the text encoder and generator of these."""
    model: Any = load_dit(lambda: instantiate(artifact.model), artifact.state, parts.device).eval()
    return stage_one_of(model, parts)


def stage_one_of(model: Denoiser, parts: Parts) -> StageOne:
    """The same of a DiT that is there, as while it trains."""
    generator = instantiate(generator_node(parts.cfg))
    return StageOne(model, parts.text_encoder, generator, parts.device, precision_of(parts))


def precision_of(parts: Parts) -> partial[torch.autocast]:
    """Makes the context that networks run in: bf16 on a GPU unless ``training.precision`` says otherwise."""
    is_half = pick_precision(parts.cfg.training.precision, parts.device) == "bf16-mixed"
    return partial(torch.autocast, parts.device.type, torch.bfloat16, enabled=is_half)
