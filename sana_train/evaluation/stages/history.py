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
    """Add ``line`` by step; returns the lines of its weights and settings, in order of step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.with_name(f".{path.name}.lock")):
        lines = [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []
        kept = [each for each in lines if any(each[key] != line[key] for key in _KEY)]
        lines = sorted(
            [*kept, dict(line)], key=lambda each: (each["settings"], each["weights"], each["step"])
        )
        with publish_file(path) as scratch:
            scratch.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return [each for each in lines if all(each[key] == line[key] for key in _KEY[1:])]
