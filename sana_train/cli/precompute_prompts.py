"""``cli.precompute --prompts``: what the refiner reads of each prompt of a file, cached for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sana_train.cli.instantiate import instantiate
from sana_train.cli.schema import TARGET
from sana_train.cli.targets import resolve_target
from sana_train.data.progress import ClipProgress
from sana_train.data.staging import staged_folder
from sana_train.text.prompt_cache import (
    FORMAT,
    SPEC_NAME,
    PromptEmbeddings,
    PromptEncoder,
    prompt_path,
    read_prompts,
    write_prompt,
    write_prompt_list,
)
from sana_train.utils.hashing import json_hash


def cache_prompts(text: dict[str, Any], file: Path, root: Path, device: torch.device) -> str:
    """Embed every prompt of ``file`` into ``root/prompts/<name of the file>``; returns what to say.

    One prompt at a time, so that its numbers do not depend on its neighbours. An interrupted call goes on
    after its last prompt, and the folder appears only when complete.

    Raises:
        ValueError: a text encoder without ``embed``, or the folder holds other prompts' embeddings.
    """
    prompts = read_prompts(file)
    if not hasattr(resolve_target(text[TARGET]), "embed"):
        raise ValueError(
            f"{text[TARGET]} gives one context of a prompt, the refiner reads two; choose "
            "text=ltx2_connectors"
        )
    encoder: PromptEncoder = instantiate(text)
    if isinstance(encoder, nn.Module):
        encoder.to(device)
    record = {
        "format": FORMAT,
        "text_encoder": type(encoder).__name__,
        "text_fingerprint": encoder.fingerprint(),
        "max_tokens": encoder.max_tokens,
        "prompts_hash": json_hash(prompts),
        "num_prompts": len(prompts),
    }
    target = root / "prompts" / file.stem
    started_s, num_new = time.monotonic(), 0
    with staged_folder(target, SPEC_NAME, record) as folder:
        if folder is not None:
            write_prompt_list(folder, prompts)
            with ClipProgress("embedding prompts", len(prompts)) as progress:
                for index, prompt in enumerate(prompts):
                    if not prompt_path(folder, index).exists():
                        write_prompt(folder, index, _single(encoder.embed([prompt])))
                        num_new += 1
                    progress.advance(1)
    size = sum(path.stat().st_size for path in target.iterdir())
    return (
        f"{len(prompts)} prompts, {num_new} of them embedded now in {time.monotonic() - started_s:.0f} s, "
        f"{size / 1e6:.1f} MB in {target}\n"
    )


def _single(embeddings: PromptEmbeddings) -> PromptEmbeddings:
    return PromptEmbeddings(embeddings.video[0], embeddings.audio[0], embeddings.mask[0])
