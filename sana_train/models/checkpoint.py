"""DiT weights between disk and network, whoever wrote them, with one copy of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sana_train.models import keys
from sana_train.models.weight_files import map_tensors, shards
from sana_train.utils.files import publish_file

Model = TypeVar("Model", bound=nn.Module)
Weights = Literal["ema", "raw"]

SIDE_FILE = "null_context.safetensors"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


def read_state(path: Path, weights: Weights = "ema") -> Mapping[str, Tensor]:
    """Weights under our names, on the CPU, in the file's dtype, each read when it is asked for.

    Args:
        path: a ``.safetensors`` or ``.pth`` file; a checkpoint or an export of ours; a diffusers folder
            or its ``transformer``, in one file or in shards. ``null_context.safetensors`` beside a
            diffusers file is read too.
        weights: which of a checkpoint of ours: the averaged ones where it has them, or those as trained.

    Raises:
        ValueError: nothing there to read, a damaged file, or not a SANA-Video DiT.
    """
    files = _weight_files(path, weights)
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(map_tensors(file))
    source = keys.detect_format(state)
    if source == "nvlabs":
        return keys.from_nvlabs(state)
    if source == "diffusers":
        side = files[0].parent / SIDE_FILE
        return keys.from_diffusers(state, map_tensors(side) if side.exists() else None)
    return state


def build_empty(
    build: Callable[[], Model], device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Model:
    """A network whose memory is taken on ``device``, without values and without time to make them.

    Raises:
        TypeError: it has a buffer that is not in its state and would keep no value.
    """
    with torch.device("meta"):
        model = build()
    lost = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    if lost:
        raise TypeError(f"{type(model).__name__} has buffers that are not in its state: {sorted(lost)}")
    return model.to(dtype).to_empty(device=device)


def load_dit(
    build: Callable[[], Model],
    state: Mapping[str, Tensor],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """The network that ``build`` makes, with every weight of ``state``: one copy, and one tensor more.

    Raises:
        ValueError: a state of another geometry, or with a key too few or too many.
    """
    model = build_empty(build, device, dtype)
    target = model.state_dict()
    _check_fit(keys.on_meta(state), target)
    with torch.no_grad():
        for key, value in target.items():
            value.copy_(state[key])
    return model


def write_diffusers(state: Mapping[str, Tensor], directory: Path) -> None:
    """A state of ours as a diffusers weight file and, beside it, the null caption."""
    converted, side = keys.to_diffusers(state)
    for name, tensors in {DIFFUSERS_FILE: converted, SIDE_FILE: side}.items():
        with publish_file(directory / name) as scratch:
            save_file({key: value.contiguous() for key, value in tensors.items()}, scratch)


def write_nvlabs(state: Mapping[str, Tensor], file: Path) -> None:
    """A state of ours as NVlabs' training code saves one: ``{"state_dict": ...}``."""
    # A view would be saved with the whole file that it is mapped from.
    converted = {key: value.contiguous().clone() for key, value in keys.to_nvlabs(state).items()}
    with publish_file(file) as scratch:
        torch.save({"state_dict": converted}, scratch)


def _weight_files(path: Path, weights: Weights) -> list[Path]:
    if path.is_file():
        return [path]
    names = ["model.safetensors"] if weights == "raw" else ["ema.safetensors", "model.safetensors"]
    for folder in (path, path / "transformer"):
        index = folder / f"{DIFFUSERS_FILE}.index.json"
        if index.is_file():
            return shards(index)
        names.append(str((folder / DIFFUSERS_FILE).relative_to(path)))
    for name in names:
        if (path / name).is_file():
            return [path / name]
    inside = sorted(str(file) for file in path.rglob("*.pth"))[:3]  # where NVlabs' repositories keep them
    raise ValueError(
        f"no DiT weights at {path.absolute()}: looked for a file of that name and, inside it, for "
        f"{', '.join(names)} or an index of shards; "
        + (
            f"deeper down there is {', '.join(inside)}: give that file"
            if inside
            else "point the config at a file or folder that has them, and fetch a repository of the hub with "
            "`hf download <organisation>/<repository>`"
        )
    )


def _check_fit(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Both states may be on meta."""
    sizes = keys.size_differences(theirs, ours, with_latent_space=True)
    if sizes:
        raise ValueError(
            f"the weights are of another network than the model: {', '.join(sizes)}; choose the model to fit "
            "the file, or the file to fit the model"
        )
    missing, unknown = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    shapes = [
        f"{key} {tuple(theirs[key].shape)} against {tuple(value.shape)}"
        for key, value in ours.items()
        if key in theirs and theirs[key].shape != value.shape
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f"the weights do not fit the model: {len(missing)} missing {missing[:4]}, {len(unknown)} unknown "
            f"{unknown[:4]}, {len(shapes)} of another shape {shapes[:4]}; give the whole DiT and nothing else"
        )
