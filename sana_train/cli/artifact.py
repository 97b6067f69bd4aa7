"""A DiT as a run leaves it, a checkpoint or an export, with the latent space it lives in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sana_train.autoencoders.weights import read_space
from sana_train.models import keys
from sana_train.models.checkpoint import Weights, read_state
from sana_train.training.checkpoint import list_checkpoints


@dataclass(frozen=True)
class Artifact:
    """What other programs need of a trained DiT.

    Attributes:
        state: weights under our names, read as they are asked for.
        model: the configuration's ``model`` node: ``_target_`` and arguments.
        space: the latent space: autoencoder's class and fingerprint, geometry, mean and std per channel.
        made_by: run id, optimiser steps, which weights.
    """

    state: Mapping[str, Tensor]
    model: dict[str, Any]
    space: dict[str, Any]
    made_by: dict[str, Any]


def read_artifact(path: Path, weights: Weights, autoencoder: Path | None) -> Artifact:
    """Read a checkpoint directory (``run.json``) or an export (``record.json``).

    Args:
        path: the directory.
        weights: averaged or raw; an export holds one set, the averaged.
        autoencoder: folder of the autoencoder, for artifacts that do not hold its statistics.

    Raises:
        ValueError: no such directory, another network than ours, or a latent space that is not known.
    """
    record = _read_record(path)
    is_export = not (path / "run.json").is_file()
    if is_export and weights == "raw":
        raise ValueError(f"{path} is an export, which holds averaged weights only; leave out --weights raw")
    config = record["config"]
    model = {key.removeprefix("model."): value for key, value in config.items() if key.startswith("model.")}
    has_ema = is_export or (path / "ema.safetensors").is_file()
    made_by = {
        "run_id": record.get("run_id"),
        "steps": record.get("step", record.get("steps")),
        "weights": weights if has_ema else "raw",
    }
    return Artifact(read_state(path, weights), model, _space(path, record, autoencoder), made_by)


def check_heads(checkpoint: Path, model: Mapping[str, Any]) -> None:
    """Hold the heads that a json beside the weights declares against a ``model`` node.

    The weights themselves do not show them: with other heads a DiT loads, and computes nonsense.

    Raises:
        ValueError: they differ.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    ours = {"num_heads": "model.num_heads", "cross_num_heads": "model.cross_num_heads"}
    diffusers = {"num_heads": "num_attention_heads", "cross_num_heads": "num_cross_attention_heads"}
    declarations = [(folder / "run.json", ours), (folder / "record.json", ours)]
    if checkpoint.is_dir():  # beside a single file, a config.json may be of anything
        declarations += [(folder / "config.json", diffusers), (folder / "transformer/config.json", diffusers)]
    for file, names in declarations:
        if not file.is_file():
            continue
        content = json.loads(file.read_text())
        declared = content.get("config", {}) if names is ours else content
        differing = [
            f"{name} {declared[theirs]} against {model[name]}"
            for name, theirs in names.items()
            if theirs in declared and name in model and declared[theirs] != model[name]
        ]
        if differing:
            raise ValueError(
                f"{file} declares another network than the model: {', '.join(differing)}; choose them alike"
            )


def check_latent_space(checkpoint: Path, state: Mapping[str, Tensor], model: Mapping[str, Any]) -> None:
    """Hold channels and patch of a ``state`` of ours against a ``model`` node.

    An adaptation starts afresh what depends on them, so that it never looks; the source's own samples, which
    close a run, would.

    Raises:
        ValueError: they differ.
    """
    found = keys.geometry(state)
    names = {"latent channels": "latent_channels", "patch": "patch_size"}
    ours = {
        "latent channels": model.get("latent_channels"),
        "patch": "x".join(map(str, model.get("patch_size", []))),
    }
    differing = [
        f"{names[name]} {found[name]} against {ours[name]}"
        for name in names
        if name in found and names[name] in model and found[name] != ours[name]
    ]
    if differing:
        raise ValueError(
            f"{checkpoint} is a DiT of another latent space than source.model says: {', '.join(differing)}; "
            "set source.model.latent_channels and source.model.patch_size to the file's and choose its "
            "autoencoder (source=wan480p and source=dcae_v_2b set all of it), or give the file that fits"
        )


def _read_record(path: Path) -> dict[str, Any]:
    has_weights = (path / "model.safetensors").is_file()  # a run's own directory has a run.json too
    for name in ("run.json", "record.json"):
        if has_weights and (path / name).is_file():
            record = json.loads((path / name).read_text())
            if any(key.startswith("model.") for key in record.get("config", {})):
                return record
            raise ValueError(f"{path / name} is of no DiT: its configuration has no model")
    inside = [path / "export", *reversed(list_checkpoints(path))]
    found = [str(each) for each in inside if (each / "model.safetensors").is_file()]
    raise ValueError(
        f"{path} is neither a checkpoint nor an export of this project: those hold model.safetensors and a "
        "run.json or record.json; give "
        + (" or ".join(found) or "a directory such as <run>/checkpoints/step_0000500 or <run>/export")
    )


def _space(path: Path, record: Mapping[str, Any], autoencoder: Path | None) -> dict[str, Any]:
    recorded = record.get("latent_space")
    fingerprint = record.get("autoencoders", {}).get("target")
    if autoencoder is None:
        if recorded is None:
            raise ValueError(
                f"{path} was made before latent statistics were kept with a DiT; name the folder of its "
                f"autoencoder (fingerprint {fingerprint}) with --autoencoder"
            )
        return recorded
    given = read_space(autoencoder)
    if given["fingerprint"] != fingerprint:
        raise ValueError(
            f"{autoencoder} has fingerprint {given['fingerprint']}, but the DiT of {path} was trained in the "
            f"space of {fingerprint}; give the autoencoder it was trained with"
        )
    return given
