"""What the refiner reads of prompts, encoded once and kept on disk.

A folder: ``spec.json`` (who encoded the prompts, by fingerprint), ``prompts.json`` (the prompts in order) and
``00000000.safetensors`` ... with ``video``, ``audio`` and ``mask`` of one prompt each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from sana_train.utils.files import publish_file, write_json
from sana_train.utils.torch_files import read_safetensors

PROMPTS_NAME = "prompts.json"
SPEC_NAME = "spec.json"
FORMAT = "sana_train/prompts/1"


@dataclass(frozen=True)
class PromptEmbeddings:
    """What a refiner's two streams attend to; of one prompt without the first axis.

    Attributes:
        video: (B, S, Dv).
        audio: (B, S, Da).
        mask: (B, S) bool. With learnt registers in place of the padding it is true everywhere.
    """

    video: Tensor
    audio: Tensor
    mask: Tensor


class PromptEncoder(Protocol):
    """What encodes prompts for a refiner; any class with these members fits."""

    max_tokens: int

    def embed(self, prompts: Sequence[str]) -> PromptEmbeddings: ...

    def fingerprint(self) -> str: ...


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line, each once; empty lines and ``#`` notes are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no prompt in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no prompts at {path.absolute()}; expected a text file, one prompt a line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one a line")
    return prompts


def prompt_path(folder: Path, index: int) -> Path:
    return folder / f"{index:08d}.safetensors"


def write_prompt(folder: Path, index: int, embeddings: PromptEmbeddings) -> None:
    """Publish one prompt's embeddings, without the axis of prompts."""
    tensors = {"video": embeddings.video, "audio": embeddings.audio, "mask": embeddings.mask}
    with publish_file(prompt_path(folder, index)) as scratch:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, scratch)


def write_prompt_list(folder: Path, prompts: list[str]) -> None:
    write_json(folder / PROMPTS_NAME, prompts)


class PromptCache(Mapping[str, PromptEmbeddings]):
    """Prompt -> its embeddings on the host, read when they are asked for; ``fingerprint``: who made them.

    Args:
        path: a folder written by ``cli.precompute --prompts``.
        fingerprint: of the text encoder that must have made it; None: whichever did.

    Raises:
        ValueError: no such cache there, or made by another text encoder.
    """

    def __init__(self, path: Path, fingerprint: str | None) -> None:
        spec = json.loads((path / SPEC_NAME).read_text()) if (path / SPEC_NAME).is_file() else {}
        if spec.get("format") != FORMAT:
            raise ValueError(
                f"{path} holds no cached prompts ({SPEC_NAME}: format {spec.get('format')!r}, expected "
                f"{FORMAT!r}); make them with `python -m sana_train.cli.precompute --prompts FILE`"
            )
        if fingerprint is not None and spec["text_fingerprint"] != fingerprint:
            raise ValueError(
                f"the prompts in {path} were encoded by {spec['text_encoder']} {spec['text_fingerprint']}, "
                f"this run's text encoder is {fingerprint}; cache them again, or use the one that made these"
            )
        self.path, self.fingerprint = path, str(spec["text_fingerprint"])
        prompts = json.loads((path / PROMPTS_NAME).read_text())
        self._index = {prompt: index for index, prompt in enumerate(prompts)}

    def __getitem__(self, prompt: str) -> PromptEmbeddings:
        if prompt not in self._index:
            raise KeyError(f"the prompt {prompt!r} is not among the {len(self)} cached in {self.path}")
        return PromptEmbeddings(**read_safetensors(prompt_path(self.path, self._index[prompt])))

    def batch(self, prompts: Sequence[str], remedy: str) -> PromptEmbeddings:
        """Of all ``prompts``, stacked.

        Raises:
            ValueError: one is not cached; ends with ``remedy``.
        """
        try:
            found = [self[prompt] for prompt in prompts]
        except KeyError as error:
            raise ValueError(f"{error.args[0]}; {remedy}") from error
        names = ("video", "audio", "mask")
        return PromptEmbeddings(*(torch.stack([getattr(one, name) for one in found]) for name in names))

    def __iter__(self):  # noqa: ANN204 - Iterator[str], which Mapping says
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)
