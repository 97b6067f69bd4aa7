"""Evaluations of one run's weights at several steps, by step in one file: ``<run>/two_stage.jsonl``.

A line is an evaluation: ``step``, ``weights``, ``settings`` (a hash of all but the DiT's weights that decides
the numbers) and flat means. The same evaluation made again replaces its line, in whatever order steps come
and whichever process made them; lines of other settings are kept and never drawn into the same curve.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sana_train.evaluation.stages.summary import Mean
from sana_train.utils.files import one_at_a_time, publish_file

HISTORY_NAME = "two_stage.jsonl"
_KEY = ("step", "weights", "settings")


def flat(
    columns: Mapping[str, Mapping[str, Mean]],
    differences: Mapping[str, Mapping[str, Mean]],
    seconds: Mapping[str, float],
) -> dict[str, float]:
    """``two_stage/<column>/<metric>``, as loggers take them."""
    named = {**columns, **{name.replace(" - ", "_minus_"): means for name, means in differences.items()}}
    metrics = {
        f"two_stage/{name}/{metric}": mean.mean
        for name, means in named.items()
        for metric, mean in means.items()
    }
    return metrics | {f"two_stage/seconds/{name}": value for name, value in seconds.items()}


def merge(path: Path, line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add ``line`` by step; returns the lines of its weights and settings, in order of step.

    Raises:
        ValueError: a line that is there cannot be read; nothing is changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.with_name(f".{path.name}.lock")):
        lines = _read(path) if path.is_file() else []
        kept = [each for each in lines if any(each[key] != line[key] for key in _KEY)]
        lines = sorted(
            [*kept, dict(line)], key=lambda each: (each["settings"], each["weights"], each["step"])
        )
        with publish_file(path) as scratch:
            scratch.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return [each for each in lines if all(each[key] == line[key] for key in _KEY[1:])]


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            line = json.loads(text)
            is_whole = isinstance(line, dict) and all(key in line for key in _KEY)
        except json.JSONDecodeError:
            is_whole = False
        if not is_whole:
            raise ValueError(
                f"{path}, line {number} is no evaluation: {text[:60]!r}. Nothing was written; take the line "
                "out and give the same command again, which makes no finished clip anew"
            )
        lines.append(line)
    return lines
