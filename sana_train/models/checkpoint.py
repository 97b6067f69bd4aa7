"""Read DiT weights, whoever wrote them, into our names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sana_train.models import keys
from sana_train.utils.files import publish_file

SIDE_FILE = "null_context.safetensors"
_DIRECTORY_PATTERNS = (
    "model.safetensors",
    "diffusion_pytorch_model*.safetensors",
    "transformer/diffusion_pytorch_model*.safetensors",
)


def read_state(path: Path) -> dict[str, Tensor]:
    """Weights under our names, on the CPU, in the file's dtype.

    Args:
        path: a ``.safetensors`` or ``.pth`` file, or a directory that holds ``model.safetensors`` or
            a diffusers transformer. ``null_context.safetensors`` beside a diffusers file is read too.

    Raises:
        ValueError: nothing there to read, or not a SANA-Video DiT.
    """
    files = _weight_files(path)
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(_read_file(file))
    source = keys.detect_format(state)
    if source == "nvlabs":
        return keys.from_nvlabs(state)
    if source == "diffusers":
        side = files[0].parent / SIDE_FILE
        return keys.from_diffusers(state, load_file(side) if side.exists() else None)
    return state


def write_diffusers(state: Mapping[str, Tensor], directory: Path) -> None:
    """A state of ours as a diffusers weight file and, beside it, the null caption."""
    converted, side = keys.to_diffusers(state)
    named = {"diffusion_pytorch_model.safetensors": converted, SIDE_FILE: side}
    for name, tensors in named.items():
        with publish_file(directory / name) as scratch:
            save_file({key: value.contiguous() for key, value in tensors.items()}, scratch)


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for pattern in _DIRECTORY_PATTERNS:
        if files := sorted(path.glob(pattern)):
            return files
    raise ValueError(
        f"no DiT weights at {path.absolute()}: looked for a file of that name and, inside it, for "
        f"{', '.join(_DIRECTORY_PATTERNS)}; point the config at a file or directory that has them"
    )


def _read_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    if file.suffix not in (".pth", ".pt"):
        raise ValueError(f"{file} is neither .safetensors nor .pth; convert it first")
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return content.get("state_dict", content)
