"""The fixed lines a convergence curve is read against.

``zero``: the best linear denoiser for loss bands, step 0 of the ``random`` arm for samples.
``reference``: a network trained natively and long in the target space. ``ceiling``: the reader on
decode(latents) of the held-out clips, the best that any denoiser could score through this
autoencoder. ``chance``: guessing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_train.utils.files import publish_file

PerClip = dict[str, NDArray[np.float32]]
KINDS = ("zero", "reference", "ceiling")


@dataclass
class Levels:
    """Per-clip metrics, so that they can be cut to fewer clips and resampled with the curves.

    Attributes:
        zero, reference, ceiling: metric -> (n,), NaN where it does not apply to a clip.
        chance: metric -> expected value of guessing.
        captions: hash per held-out clip, in the order of the arrays; empty = unknown.
    """

    zero: PerClip = field(default_factory=dict)
    reference: PerClip = field(default_factory=dict)
    ceiling: PerClip = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)

    def means(self, kind: str) -> dict[str, float]:
        """Metric -> mean over clips of ``zero``, ``reference`` or ``ceiling``; ``chance`` as it is."""
        if kind == "chance":
            return dict(self.chance)
        return means(getattr(self, kind))

    def save(self, path: Path) -> None:
        arrays = {f"{kind}/{name}": value for kind in KINDS for name, value in getattr(self, kind).items()}
        notes = json.dumps({"chance": self.chance, "captions": self.captions})
        save_arrays(path, {**arrays, "notes": np.array(notes)})

    @classmethod
    def load(cls, path: Path, captions: list[str] | None = None) -> Levels:
        """Read levels, cut to the first ``len(captions)`` clips.

        Raises:
            ValueError: the levels were measured on other clips.
        """
        arrays = load_arrays(path)
        notes = json.loads(str(arrays.pop("notes")))
        levels = cls(chance=notes["chance"], captions=notes["captions"])
        count = None
        if captions is not None:
            count = len(captions)
            if levels.captions[:count] != captions:
                raise ValueError(
                    f"{path} was measured on other held-out clips than the {count} of this run; use the "
                    "same world and held-out seed, or measure the reference again"
                )
            levels.captions = captions
        for key, value in arrays.items():
            kind, name = key.split("/", 1)
            getattr(levels, kind)[name] = value[:count]
        return levels


def means(per_clip: PerClip) -> dict[str, float]:
    """Mean of every metric over the clips it applies to; a metric that applies to none is left out."""
    return {
        name: float(np.nanmean(value.astype(np.float64)))
        for name, value in per_clip.items()
        if not np.isnan(value).all()
    }


def save_arrays(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """A compressed ``.npz``, floats as float32, published whole."""
    packed: dict[str, Any] = {  # Any: savez's own keyword shadows the arrays' type
        name: value.astype(np.float32) if np.issubdtype(value.dtype, np.floating) else value
        for name, value in arrays.items()
    }
    with publish_file(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, **packed)


def load_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}
