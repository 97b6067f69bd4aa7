"""What an evaluation leaves: numbers, a table, pictures, films, and a page that opens from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sana_train.evaluation import html_page
from sana_train.evaluation.stages import history
from sana_train.evaluation.stages.pictures import draw
from sana_train.evaluation.stages.run import Evaluation
from sana_train.evaluation.stages.summary import as_json, rows_of, summarise, table
from sana_train.utils.files import publish_file, write_json

METRICS_NAME = "metrics.json"
PAGE_NAME = "index.html"
_CURVES = ("semantic", "colour", "texture", "spectrum_gap")
_PARTS = ("text", "stage1", "upsample", "stage2", "decode", "source", "transcode", "single")


def write_report(
    evaluation: Evaluation,
    made_by: Mapping[str, Any],
    settings: str,
    notes: Sequence[str],
    num_draws: int,
    facts: Mapping[str, Any],
    run_dir: Path | None,
) -> dict[str, float]:
    """Write everything into the evaluation's folder once all clips are done; returns flat means.

    Args:
        made_by: run id, steps and which weights.
        settings: hash of all else that decides the numbers.
        notes: what a reader of the numbers has to know.
        num_draws: of the bootstrap.
        facts: go into metrics.json as they are.
        run_dir: of the run that the weights are of, whose history gets a line; None: of no run here.
    """
    out, per_clip = evaluation.out, evaluation.per_clip()
    judged = {
        name: values for name, values in per_clip.items() if name.partition("/")[0] in evaluation.columns
    }
    columns, differences = summarise(judged, num_draws, evaluation.stages.seed)
    seconds = {
        name: float(np.nanmedian(per_clip[f"seconds/{name}"]))
        for name in _PARTS
        if f"seconds/{name}" in per_clip
    }
    peak = (
        float(np.nanmax(per_clip["peak_gib"]))
        if np.isfinite(per_clip.get("peak_gib", np.nan)).any()
        else None
    )
    write_json(
        out / METRICS_NAME,
        {
            **facts,
            "checkpoint": dict(made_by),
            "num_clips": evaluation.num_clips,
            "columns": as_json(columns),
            "differences": as_json(differences),
            "seconds_per_clip": seconds,
            "peak_gib": peak,
            "notes": list(notes),
        },
    )
    heading = f"Two stages, {made_by['run_id']} at step {made_by['steps']}"
    rows = rows_of(columns, differences)
    with publish_file(out / "table.md") as scratch:
        scratch.write_text(table(rows, heading))
    metrics = history.flat(columns, differences, seconds)
    lines: list[dict[str, Any]] = []
    if run_dir is not None:
        step = {"step": made_by["steps"], "weights": made_by["weights"], "settings": settings}
        lines = history.merge(run_dir / history.HISTORY_NAME, {**step, **metrics})
    films: list[str] = []
    captions: list[str] = []
    if evaluation.num_shown:
        captions, shown = evaluation.shown()
        films = draw(out, captions, shown, evaluation.stages.fps)
    head = {
        **made_by,
        "clips": evaluation.num_clips,
        **{f"{k}, s a clip": f"{v:.3f}" for k, v in seconds.items()},
    }
    if peak is not None:
        head["peak memory, GiB"] = f"{peak:.1f}"
    _write_page(out, heading, head, notes, rows, lines, dict(zip(films, captions, strict=True)))
    return metrics


def _write_page(
    out: Path,
    heading: str,
    head: Mapping[str, object],
    notes: Sequence[str],
    rows: Sequence[Sequence[str]],
    lines: Sequence[Mapping[str, Any]],
    films: Mapping[str, str],
) -> None:
    """The page, of which pictures and films lie beside it."""
    sections: list[tuple[str, str, bool]] = []
    if films:
        sections.append(
            (
                "A frame of each column; below it a quarter of its width at 4x",
                html_page.picture("stages.png"),
                True,
            )
        )
    sections += [(caption, html_page.film(name), True) for name, caption in films.items()]
    if len(lines) > 1:
        for metric in _CURVES:
            series = _series(lines, metric)
            if series:
                sections.append((f"{metric} along training", html_page.curves(series), False))
    sections.append(("Numbers", html_page.grid(rows), True))
    top = [html_page.table(head), *map(html_page.note, notes)]
    html_page.write_page(out / PAGE_NAME, heading, top, sections)


def _series(lines: Sequence[Mapping[str, Any]], metric: str) -> dict[str, tuple[list[int], list[float]]]:
    found = {}
    for column in ("stage1", "stage2", "ceiling"):
        key = f"two_stage/{column}/{metric}"
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            found[column] = ([step for step, _ in points], [value for _, value in points])
    return found
