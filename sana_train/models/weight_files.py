"""Tensors of weight files, mapped into memory, and what is wrong with a file said in one sentence."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor

from sana_train.utils.torch_files import NO_TORCH_FILE, is_torch_file, map_torch_file, read_safetensors


def map_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file; numbers are read where they are used.

    Raises:
        ValueError: another kind of file, a damaged one, or one that holds more than tensors.
    """
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    if file.suffix in (".pth", ".pt"):
        return _tensors_of(map_torch_file(file), file)
    raise ValueError(f"{file} is neither .safetensors nor .pth; convert it first")


def damage(file: Path) -> str:
    """What shows that a weight file is not whole, found without reading its numbers; empty if nothing does.

    A safetensors file says in its header where the last tensor ends, and torch's archives end in a table
    of what they hold. Other files are taken for whole.
    """
    size = file.stat().st_size
    reason = ""
    try:
        if file.suffix == ".safetensors":
            reason = _damage_of_safetensors(file, size)
        elif file.suffix in (".pth", ".pt"):
            reason = _damage_of_torch(file, size)
    except OSError as error:
        return f"{file} cannot be read ({error.strerror}); ask its owner to let you, or give a copy"
    return f"{file} is damaged or incomplete at {size:,} bytes ({reason}); fetch it again" if reason else ""


def _damage_of_safetensors(file: Path, size: int) -> str:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if 8 + length > size:
            return "the header is not all there"
        try:
            header = json.loads(opened.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, LookupError, TypeError):
            return "the header cannot be read"
    expected = 8 + length + max(ends, default=0)
    return "" if size == expected else f"its header announces {expected:,}"


def _damage_of_torch(file: Path, size: int) -> str:
    if size and not is_torch_file(file):
        return NO_TORCH_FILE
    with file.open("rb") as opened:
        is_archive = opened.read(2) == b"PK"
    return "the end is missing" if size == 0 or (is_archive and not zipfile.is_zipfile(file)) else ""


def shards(index: Path) -> list[Path]:
    """The files that a diffusers ``*.safetensors.index.json`` names.

    Raises:
        ValueError: no such index, or a file that it names is not there.
    """
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{index} is not an index of weight files; fetch the folder again") from error
    files = sorted({index.parent / name for name in weight_map.values()})
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{index} names {len(files)} files, of which {len(missing)} are missing: {', '.join(missing)}; "
            "fetch the folder again"
        )
    return files


def _tensors_of(content: Any, file: Path) -> dict[str, Tensor]:
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        found = sorted(map(str, content))[:8] if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{file} holds no state dict: expected tensors by name, alone or under 'state_dict', found "
            f"{found}; give the DiT's own weight file"
        )
    return tensors
