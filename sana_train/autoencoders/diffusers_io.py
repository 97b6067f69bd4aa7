"""Weights and fresh starts for networks that are diffusers classes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sana_train.autoencoders.base import missing_weights

Model = TypeVar("Model", bound=nn.Module)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_diffusers(
    reference: Model, weights: str, remedy: str, *, part: str = "vae", dtype: torch.dtype = torch.float32
) -> Model:
    """A model like ``reference`` with weights from a diffusers folder or a hub id, in ``dtype``.

    The weights may lie in the folder itself or in its subfolder ``part``.

    Raises:
        FileNotFoundError: no such folder, and no hub repository that could be reached.
        ValueError: an architecture other than the configured one, or a file whose keys are not exactly
            the class's own: a tensor left at its default would spoil every latent unnoticed.
    """
    kind: Any = type(reference)
    folder = Path(weights)
    if (folder / "config.json").is_file():
        subfolder = None
    elif (folder / part / "config.json").is_file() or (
        not folder.exists() and _HUB_ID.fullmatch(weights) is not None
    ):
        subfolder = part
    else:
        raise missing_weights(kind.__name__, folder / "config.json", remedy)
    if folder.exists():
        _check_config(reference, folder / (subfolder or "") / "config.json")
    try:
        loaded, report = kind.from_pretrained(
            weights, subfolder=subfolder, torch_dtype=dtype, output_loading_info=True
        )
    except (
        OSError,
        ValueError,
    ) as error:  # a file cut short; tensors of another shape
        if folder.exists():
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the weights in {weights} are no {kind.__name__} as configured, or damaged ({reason}); "
                f"fetch the repository's own `{part}` folder again"
            ) from error
        raise missing_weights(kind.__name__, weights, f"and the hub gave none ({error}); {remedy}") from error
    _refuse(_differences(reference.config, loaded.config), weights)  # with the class's defaults
    found = [
        f"{len(report[what])} {what.replace('_', ' ')} (such as {report[what][0]})"
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if report[what]
    ]
    if found:
        raise ValueError(
            f"weights in {weights} do not fit {type(reference).__name__}: {'; '.join(found)}; fetch the "
            f"repository's own `{part}` folder again"
        )
    return loaded


def _check_config(reference: Any, file: Path) -> None:
    """Told by ``config.json``, because diffusers fails in its own words on tensors of another shape.

    Raises:
        ValueError: another class, or another architecture.
    """
    theirs = json.loads(file.read_text())
    name, ours = theirs.get("_class_name"), type(reference).__name__
    if name not in (None, ours):
        raise ValueError(f"{file} is of a {name}, the config builds a {ours}; give the weights of the latter")
    _refuse(_differences(reference.config, theirs), file.parent)


def _refuse(differing: list[str], weights: str | Path) -> None:
    if differing:
        raise ValueError(
            f"{weights} holds another architecture than the config builds: {'; '.join(differing)}; another "
            "generation is another network (of an autoencoder: another latent space), even where shapes agree"
        )


def _differences(ours: Any, theirs: Any) -> list[str]:
    """``key: theirs, configured ours`` for each config entry that both state and that differs."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, (list, tuple)) else value

    return [
        f"{key} {plain(theirs[key])}, configured {plain(value)}"
        for key, value in ours.items()
        if not key.startswith("_") and theirs.get(key) is not None and plain(theirs[key]) != plain(value)
    ]


def use_tiles(vae: Any, stride_px: int, tile_px: int | None, tile_stride_px: int | None) -> dict[str, int]:
    """Let a diffusers autoencoder code large clips in overlapping tiles; returns what changes results.

    Raises:
        ValueError: one of the two sizes alone, no overlap, or tiles that do not divide into latents.
    """
    if tile_px is None and tile_stride_px is None:
        return {}
    given = f"tile_px={tile_px}, tile_stride_px={tile_stride_px}"
    if tile_px is None or tile_stride_px is None:
        raise ValueError(f"{given}: give both, or neither to code clips whole")
    if tile_px % stride_px or tile_stride_px % stride_px or not 0 < tile_stride_px < tile_px:
        raise ValueError(
            f"{given}: expected multiples of {stride_px}, the pixels of a latent, and a stride below the "
            "tile, so that tiles overlap and can be blended"
        )
    vae.enable_tiling(
        tile_sample_min_height=tile_px,
        tile_sample_min_width=tile_px,
        tile_sample_stride_height=tile_stride_px,
        tile_sample_stride_width=tile_stride_px,
    )
    return {"tile_px": tile_px, "tile_stride_px": tile_stride_px}


@torch.no_grad()
def reset_tree(model: nn.Module) -> None:
    """Fresh random weights for every layer of ``model``; layers without a rule of their own are norms."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name not in ("gamma", "bias"):
                raise TypeError(f"{type(module).__name__}.{name} has no rule to start from")
            parameter.fill_(1.0 if name == "gamma" else 0.0)
