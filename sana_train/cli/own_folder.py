"""A folder that belongs to one command: it goes on there, and no other writes into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sana_train.utils.files import write_json


def own_folder(out: Path, record_name: str, record: dict[str, Any]) -> None:
    """Begin ``out`` with ``record``, what decides its content, or go on with it.

    Raises:
        ValueError: it holds something else, or was made by another command.
    """
    record = json.loads(json.dumps(record))
    file = out / record_name
    if file.is_file():
        before = json.loads(file.read_text())
        differing = [name for name in record if before.get(name) != record[name]]
        if differing:
            raise ValueError(f"{out} was made with another {', '.join(differing)}; give another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and was not made by this command; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, record)
