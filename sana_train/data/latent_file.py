"""One clip's latents in one file, as `cli.sample` writes them for stage 2: safetensors with what they are.

Tensor ``latents`` (C, T, H, W); metadata ``sana_train``, a JSON of space, is_normalised, fps and prompt.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sana_train.types import VideoLatents
from sana_train.utils.files import publish_file

FORMAT = "sana_train/latents/1"
_KEY = "sana_train"


def write_latents(path: Path, latents: VideoLatents, prompt: str) -> None:
    """Publish the latents of a batch of one.

    Raises:
        ValueError: more than one clip.
    """
    if latents.values.ndim != 5 or len(latents.values) != 1:
        raise ValueError(f"a latent file holds one clip, (1, C, T, H, W), got {tuple(latents.values.shape)}")
    what = {
        "format": FORMAT,
        "space": latents.space,
        "is_normalised": latents.is_normalised,
        "fps": latents.fps,
        "prompt": prompt,
    }
    metadata = {_KEY: json.dumps(what, sort_keys=True)}  # one entry: equal clips give equal bytes
    with publish_file(path) as scratch:
        save_file({"latents": latents.values[0].detach().cpu().contiguous()}, scratch, metadata=metadata)


def read_latents(path: Path) -> tuple[VideoLatents, str]:
    """(latents of a batch of one, prompt).

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no latents at {path.absolute()}; `python -m sana_train.cli.sample` writes some"
        )
    try:
        with safe_open(path, framework="pt") as file:
            what = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            if what.get("format") != FORMAT:
                raise ValueError(
                    f"{path} is no latent file (format {what.get('format')!r}, expected {FORMAT!r}); "
                    "`python -m sana_train.cli.sample` writes those"
                )
            values = file.get_tensor("latents")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); make it again") from error
    latents = VideoLatents(values[None], what["space"], what["is_normalised"], what["fps"])
    return latents, what["prompt"]
