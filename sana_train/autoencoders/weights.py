"""Weights of autoencoders on disk: ``model.safetensors``, ``spec.json``, ``record.json``.

``spec.json`` says which class made the weights, with which geometry and settings, and the
fingerprint, so that a folder of other weights is refused instead of decoding to noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sana_train.autoencoders.base import VideoAutoencoder, class_path, missing_weights
from sana_train.utils.files import publish_directory, write_json
from sana_train.utils.torch_files import map_torch_file, read_safetensors

STATISTICS = ("latents_mean", "latents_std")


def save_autoencoder(model: VideoAutoencoder, directory: Path, record: dict[str, Any]) -> str:
    """Publish weights (bf16; statistics fp32), ``spec.json`` and ``record.json``; returns the fingerprint.

    ``model`` itself is rounded to what was written, so that its fingerprint is that of the files.
    """
    tensors = round_weights(model)
    spec = {
        "autoencoder": class_path(model),
        "fingerprint": model.fingerprint(),
        "latent_spec": model.spec.to_dict(),
        "settings": dict(model.settings),
        "dtype": "bfloat16",
    }
    with publish_directory(Path(directory)) as scratch:
        save_file(tensors, scratch / "model.safetensors")
        write_json(scratch / "spec.json", spec)
        write_json(scratch / "record.json", record)
    return spec["fingerprint"]


def round_weights(model: VideoAutoencoder) -> dict[str, Tensor]:
    """Round the weights in place to what a file holds; returns the file's tensors."""
    tensors = {
        name: value.detach().cpu().to(_stored_dtype(name, value)).contiguous().clone()
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(tensors)
    return tensors


def load_weights(model: VideoAutoencoder, path: str | Path) -> None:
    """Load a folder written by ``save_autoencoder``, or a published ``.pt`` file, in place.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: made by another class, geometry or architecture, or changed since it was written.
    """
    path = Path(path)
    if path.suffix == ".pt":
        _load_published(model, path)
        return
    file = path / "model.safetensors"
    if not (file.is_file() and (path / "spec.json").is_file()):
        remedy = "a folder holds model.safetensors and spec.json; train them, or set weights=null"
        raise missing_weights(class_path(model), file, remedy)
    spec = json.loads((path / "spec.json").read_text())
    expected = {
        "autoencoder": class_path(model),
        "latent_spec": model.spec.to_dict(),
        "settings": dict(model.settings),
    }
    for key, ours in expected.items():
        if spec.get(key) != ours:
            raise ValueError(f"{path} holds weights with {key} {spec.get(key)}, but the config builds {ours}")
    load_strict(model, read_safetensors(file), path)
    if model.fingerprint() != spec.get("fingerprint"):
        raise ValueError(
            f"{file} has fingerprint {model.fingerprint()}, but spec.json beside it says "
            f"{spec.get('fingerprint')}; the two are not from one save, fetch or train them again"
        )


def read_space(directory: Path) -> dict[str, Any]:
    """The latent space of a folder written by ``save_autoencoder``, without building the autoencoder.

    Returns:
        ``autoencoder`` (class), ``fingerprint``, ``latent_spec``, ``mean`` and ``std`` per channel.

    Raises:
        FileNotFoundError: nothing there.
    """
    file = directory / "model.safetensors"
    if not (file.is_file() and (directory / "spec.json").is_file()):
        raise missing_weights("an autoencoder", file, "a folder holds model.safetensors and spec.json")
    spec = json.loads((directory / "spec.json").read_text())
    named = {name.rpartition(".")[2]: value for name, value in read_safetensors(file).items()}
    mean, std = (named[name].tolist() for name in STATISTICS)
    return {key: spec[key] for key in ("autoencoder", "fingerprint", "latent_spec")} | {
        "mean": mean,
        "std": std,
    }


@contextmanager
def without_values(is_to_be_loaded: bool) -> Iterator[None]:
    """Modules built inside are on meta if their values come from a file: no time and no memory for others."""
    with torch.device("meta") if is_to_be_loaded else nullcontext():
        yield


def load_strict(model: VideoAutoencoder, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy ``tensors`` in; missing, unexpected and misshapen keys are a ``ValueError`` that names them."""
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
    problems = {
        "missing": sorted(ours.keys() - theirs.keys()),
        "unexpected": sorted(theirs.keys() - ours.keys()),
        "of another shape": [f"{name} {theirs[name]} for {ours[name]}" for name in wrong],
    }
    found = [f"{len(keys)} {kind} (such as {keys[0]})" for kind, keys in problems.items() if keys]
    if found:
        raise ValueError(f"weights in {source} do not fit {class_path(model)}: {'; '.join(found)}")
    model.load_state_dict(tensors)


def _stored_dtype(name: str, value: Tensor) -> torch.dtype:
    """Statistics keep fp32: they are a few numbers and every latent passes through them."""
    if not value.is_floating_point() or name.rpartition(".")[2] in STATISTICS:
        return value.dtype
    return torch.bfloat16


def _load_published(model: VideoAutoencoder, path: Path) -> None:
    """A published container: the first EMA state dict if there is one, else the model's. No statistics."""
    if not path.is_file():
        raise missing_weights(class_path(model), path, "download the published .pt file there")
    container = map_torch_file(path)
    if not isinstance(container, dict):
        raise ValueError(
            f"{path} holds a {type(container).__name__}; give the published file of the autoencoder"
        )
    averages = container.get("ema_model_state_dict")
    if not averages and "model_state_dict" not in container:
        raise ValueError(
            f"{path} holds neither 'ema_model_state_dict' nor 'model_state_dict', but "
            f"{sorted(container)[:8]}; give the published file of the autoencoder"
        )
    tensors = next(iter(averages.values())) if averages else container["model_state_dict"]
    state = model.state_dict()
    load_strict(model, {**{name: state[name] for name in STATISTICS}, **tensors}, path)
