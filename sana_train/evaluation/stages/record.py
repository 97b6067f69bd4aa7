"""What an evaluation of two stages left, read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sana_train.evaluation.stages.summary import Mean

# Of evaluate.py; of the main one among several; of a record that keeps no evaluation whole.
_FILES = ("metrics.json", "main/metrics.json", "results.json")

Means = Mapping[str, Mapping[str, Mean]]


@dataclass(frozen=True)
class StoredEvaluation:
    """Numbers of one evaluation.

    Attributes:
        folder: where they were.
        num_clips: that were evaluated.
        columns: column -> metric -> mean.
        differences: ``a - b`` -> metric -> mean of the paired difference.
        seconds: part -> median seconds per clip.
        chance: attribute -> accuracy of a guess.
        notes: what a reader of the numbers has to know.
    """

    folder: Path
    num_clips: int
    columns: Means
    differences: Means
    seconds: Mapping[str, float]
    chance: Mapping[str, float]
    notes: tuple[str, ...]


def read_evaluation(folder: Path) -> StoredEvaluation:
    """Of evaluate.py's folder, or of a record under ``experiments/``.

    Raises:
        FileNotFoundError: none there.
    """
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"no {' nor '.join(_FILES)} in {folder.absolute()}; evaluate.py experiment=two_stage writes one"
        )
    content = json.loads(file.read_text())
    return StoredEvaluation(
        folder,
        content["num_clips"],
        _means(content["columns"]),
        _means(content.get("differences", {})),
        content.get("seconds_per_clip", {}),
        content.get("chance", {}),
        tuple(content.get("notes", ())),
    )


def _means(stored: Mapping[str, Mapping[str, Any]]) -> Means:
    return {
        column: {metric: Mean(**values) for metric, values in metrics.items() if values is not None}
        for column, metrics in stored.items()
    }
