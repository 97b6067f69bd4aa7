"""Files of ``torch.save`` and safetensors, mapped into memory; what is wrong with one is said clearly."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

NO_TORCH_FILE = "it does not begin as a file of torch.save: a web page, or a pointer of Git LFS?"


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file; numbers are read where they are used.

    Raises:
        ValueError: a damaged file.
    """
    try:
        return load_file(file)
    except SafetensorError as error:
        raise damaged(file, error) from error


def map_torch_file(file: Path) -> Any:
    """What ``torch.save`` wrote, if it is tensors in containers; numbers are read where they are used.

    Raises:
        ValueError: a damaged file, one of another format, or one that holds more than tensors.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{file} holds pickled Python objects{f' ({what[1]})' if what else ''} besides tensors; reading "
            "them would run code of whoever wrote the file, so it is refused. If you trust its author, open "
            "it once with torch.load(..., weights_only=False) and save its tensors alone"
        ) from error
    except RuntimeError as error:
        if not is_torch_file(file):
            raise damaged(file, ValueError(NO_TORCH_FILE)) from error
        if "mmap can only be used" in str(error):
            raise ValueError(
                f"{file} is in torch's format from before 2020, which cannot be mapped into memory; load "
                "it with torch.load(..., weights_only=True) and torch.save it again"
            ) from error
        raise damaged(file, error) from error


def is_torch_file(file: Path) -> bool:
    """By its first bytes: an archive, or a pickle as before 2020; a saved web page is neither."""
    with file.open("rb") as opened:
        first = opened.read(2)
    return first == b"PK" or first[:1] == b"\x80"


def damaged(file: Path, error: Exception) -> ValueError:
    """``file`` cannot be read to its end, for the reason that the first line of ``error`` gives."""
    reason = str(error).splitlines()[0]
    return ValueError(
        f"{file} is damaged or incomplete at {file.stat().st_size:,} bytes ({reason}); fetch it again"
    )
