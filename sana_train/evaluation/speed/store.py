"""Rows of a benchmark on disk, written one group at a time, so that a call that ended early goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sana_train.utils.files import write_json

RESULTS_FILE = "results.json"
# What one table must have in common; the rest of the facts is told of the process that began it.
_SAME = ("what", "device", "commit", "torch", "model", "clip", "num_context")


class Results:
    """``results.json`` of one folder: facts, ceilings, rows.

    Args:
        folder: is made if it is not there.
        facts: what was measured, on what, by which code.

    Raises:
        ValueError: the folder holds results of another device, code or model.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.path = folder / RESULTS_FILE
        self.content: dict[str, Any] = {"facts": dict(facts), "ceilings": None, "rows": []}
        if self.path.is_file():
            found = read_results(folder)
            differ = [
                f"{key}: {found['facts'].get(key)!r} there, {facts.get(key)!r} now"
                for key in _SAME
                if found["facts"].get(key) != facts.get(key)
            ]
            if differ:
                raise ValueError(
                    f"{self.path} is of another benchmark ({'; '.join(differ)}); rows of both in one table "
                    "would compare what cannot be compared. Name another folder, or move this one away"
                )
            self.content = found

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.content["rows"]

    @property
    def ceilings(self) -> dict[str, float] | None:
        return self.content["ceilings"]

    def set_ceilings(self, ceilings: Mapping[str, float]) -> None:
        self.content["ceilings"] = dict(ceilings)
        self._write()

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether there is a row with these values."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep rows that belong together: all of them, or none if the process ends now."""
        self.rows.extend(dict(row) for row in rows)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)


def read_results(folder: Path) -> dict[str, Any]:
    """Facts, ceilings and rows of a folder.

    Raises:
        ValueError: none there.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise ValueError(
            f"no {RESULTS_FILE} in {folder.absolute()}; `python -m sana_train.cli.benchmark` writes it"
        )
    return json.loads(path.read_text())
