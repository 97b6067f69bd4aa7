"""Text to pixels by pipeline: what its measured parts add up to, as a table and as a figure.

A folder holds ``parts/NAME.WAY.json``: seconds of one call, how often a clip needs it, and memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from sana_train.evaluation.figure_style import INK, MUTED, new_figure
from sana_train.evaluation.record_tables import markdown_table
from sana_train.utils.files import publish_file, write_json

WAYS = ("stock", "ours")
FREE_UPGRADE = 1.0  # wanted at most: 2K in two stages over 720p in the DCAE-V space, stock against stock
MEMORY_GIB = 80e9 / 2**30  # wanted at most, without offload
# Parts that are the same network and code on both sides, so measured once.
_OF_BOTH = ("decode_wan_480p", "decode_dcae_v_720p", "upsample_2k")
_COLOURS = {
    "text": "#7b8794",
    "stage 1": "#2b6cb0",
    "upsample": "#b7791f",
    "stage 2": "#c2407e",
    "decode": "#2f855a",
}


@dataclass(frozen=True)
class Pipeline:
    """One way from a prompt to a clip.

    Attributes:
        label: in tables.
        parts: stage -> the part that is measured for it, in order.
        published_s: on one H100, by the paper.
    """

    label: str
    parts: Mapping[str, str]
    published_s: float


PIPELINES = {
    "wan_480p": Pipeline(
        "480p Wan",
        {"text": "text", "stage 1": "denoise_wan_480p", "decode": "decode_wan_480p"},
        60.0,
    ),
    "dcae_v_720p": Pipeline(
        "720p DCAE-V",
        {"text": "text", "stage 1": "denoise_dcae_v_720p", "decode": "decode_dcae_v_720p"},
        36.0,
    ),
    "ltx2_720p": Pipeline(
        "720p LTX-2",
        {"text": "text", "stage 1": "denoise_ltx2_720p", "decode": "decode_ltx2_720p"},
        18.0,
    ),
    "ltx2_2k": Pipeline(
        "2K two-stage",
        {
            "text": "text",
            "stage 1": "denoise_ltx2_720p",
            "upsample": "upsample_2k",
            "stage 2": "refine_2k",
            "decode": "decode_ltx2_2k",
        },
        36.0,
    ),
}


def part_name(part: str, way: str) -> str:
    """What its file is called."""
    return f"{part}.{'both' if part in _OF_BOTH else way}"


def write_report(folder: Path) -> dict[str, Any]:
    """``results.json``, ``table.md`` and ``figure.png`` of what is measured so far; returns the first.

    Raises:
        ValueError: nothing is.
    """
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("parts/*.json"))}
    if not found:
        raise ValueError(
            f"no part in {folder.absolute()}/parts; python -m sana_train.cli.latency measures them"
        )
    results = summarise(found)
    write_json(folder / "results.json", results)
    with publish_file(folder / "table.md") as scratch:
        scratch.write_text(report_text(results))
    draw(results, folder / "figure.png")
    return results


def summarise(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of parts by pipeline and way; a pipeline whose parts did not all fit into memory has no sum."""
    pipelines: dict[str, Any] = {}
    for name, pipeline in PIPELINES.items():
        for way in WAYS:
            row = _sum(pipeline, way, found)
            whole = found.get(f"whole_{name}.{way}")
            if row or whole:
                pipelines.setdefault(name, {})[way] = {**row, "whole": whole and _facts_of(whole)}
    facts = {key: next(iter(found.values()))[key] for key in ("size", "environment")}
    overrides = sorted({word for record in found.values() for word in record["overrides"]})
    return {
        **facts,
        "overrides": overrides,
        "pipelines": pipelines,
        "parts": {name: _facts_of(record) for name, record in found.items()},
        "free_upgrade": {way: _ratio(pipelines, way) for way in WAYS},
    }


def _facts_of(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("size", "environment", "overrides")}


def _sum(pipeline: Pipeline, way: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    records = {stage: found.get(part_name(part, way)) for stage, part in pipeline.parts.items()}
    if None in records.values():  # stages that pipelines share are no sign that this one was measured
        return {}
    stages = {
        stage: record["s"] * record["count"]
        for stage, record in records.items()
        if record is not None and "s" in record
    }
    missing = [stage for stage in records if stage not in stages]
    present = [record for record in records.values() if record is not None and "s" in record]
    resident = sum(record["weights_gib"] for record in present)
    peaks = [
        record["peak_gib"] - record["weights_gib"] for record in present if record["peak_gib"] is not None
    ]
    return {
        "stages_s": stages,
        "missing": missing,
        "s": None if missing else sum(stages.values()),
        "resident_gib": None if missing or not peaks else resident,
        "peak_gib": None if missing or not peaks else resident + max(peaks),
    }


def _ratio(pipelines: Mapping[str, Any], way: str) -> float | None:
    two_stage, before = (pipelines.get(name, {}).get(way, {}).get("s") for name in ("ltx2_2k", "dcae_v_720p"))
    return None if two_stage is None or before is None else two_stage / before


def report_text(results: Mapping[str, Any]) -> str:
    """The page of tables."""
    environment = results["environment"]
    dtype = "float32" if results["size"] == "tiny" else "bf16"
    lines = [
        "# Text to pixels",
        "",
        f"{environment['device']}, torch {environment['torch']}, commit {environment['commit']}.",
        f"Size {results['size']}, random {dtype} weights.",
    ]
    if results["overrides"]:
        lines.append(f"Ours with {', '.join(results['overrides'])}.")
    lines += [
        "Published: one H100, by the paper. Gemma-3, the refiner's text encoder, is left out.",
        "Peaks without a whole pass: all networks resident, and the largest part's working memory.",
        "",
    ]
    lines += [markdown_table(_stage_rows(results)), "", markdown_table(_whole_rows(results)), ""]
    for way, ratio in results["free_upgrade"].items():
        if ratio is not None:
            verdict = "reached" if ratio <= FREE_UPGRADE else "missed"
            wanted = f" (wanted <= {FREE_UPGRADE:.1f}: {verdict})" if way == "stock" else ""
            lines.append(f"Free upgrade, 2K two-stage / 720p DCAE-V, {way}: {ratio:.3f}{wanted}.")
    lines += ["", "## Parts", "", markdown_table(_part_rows(results["parts"])), ""]
    return "\n".join(lines)


def _stage_rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows = [["pipeline", "way", *_COLOURS, "sum s"]]
    for name, way, row in _rows(results):
        stages = row.get("stages_s", {})
        shares = [_share(stages.get(stage), row.get("s")) for stage in _COLOURS]
        rows.append([PIPELINES[name].label, way, *shares, _number(row.get("s"))])
    return rows


def _whole_rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows = [["pipeline", "way", "sum s", "whole s", "whole / sum", "published s", "resident GiB", "peak GiB"]]
    for name, way, row in _rows(results):
        whole, total = row["whole"] or {}, row.get("s")
        seconds = whole.get("s")
        measured = "out of memory" if "error" in whole else _number(seconds)
        ratio = "" if seconds is None or total is None else f"{seconds / total:.3f}"
        is_measured = _is_measured(whole)
        peak = max(whole["peaks_gib"].values()) if is_measured else row.get("peak_gib")
        resident = whole["resident_gib"] if is_measured else row.get("resident_gib")
        published = f"{PIPELINES[name].published_s:g}" if results["size"] == "2b" else ""
        rows.append([PIPELINES[name].label, way, _number(total), measured, ratio, published,
            _number(resident, 1), _number(peak, 1)])  # fmt: skip
    return rows


def _rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for name, ways in results["pipelines"].items():
        for way, row in ways.items():
            yield name, way, row


def _is_measured(whole: Mapping[str, Any]) -> bool:
    return bool(whole) and "error" not in whole and None not in whole["peaks_gib"].values()


def _share(seconds: float | None, total: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f}" if total is None else f"{seconds:.2f} {seconds / total:.0%}"


def _part_rows(parts: Mapping[str, Any]) -> list[list[str]]:
    rows = [["part", "s", "range", "count", "first s", "weights GiB", "peak GiB"]]
    for name, part in parts.items():
        if name.startswith("whole_"):
            continue
        if "error" in part:
            rows.append([name, part["error"][:40], "", "", "", "", ""])
            continue
        low, high = part["range_s"]
        cells = [name, f"{part['s']:.4f}", f"{low:.4f} to {high:.4f}", str(part["count"])]
        cells.append(_number(part["first_s"], 1))
        rows.append(cells + [_number(part[key], 1) for key in ("weights_gib", "peak_gib")])
    return rows


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Stacked bars, a row for each pipeline and way, with every stage's share and what was published."""
    bars = [
        (PIPELINES[name].label, way, row)
        for name, ways in results["pipelines"].items()
        for way, row in ways.items()
        if row.get("s") is not None
    ]
    has_published = results["size"] == "2b"
    longest = max([row["s"] for *_, row in bars], default=1.0)
    if has_published:
        longest = max(longest, *(pipeline.published_s for pipeline in PIPELINES.values()))
    with new_figure(9.0, 1.5 + 0.42 * (len(bars) + 4 * has_published), path) as figure:
        axes = figure.subplots()
        labels: list[str] = []
        for name, pipeline in PIPELINES.items():
            for way, row in results["pipelines"].get(name, {}).items():
                if row.get("s") is not None:
                    _draw_bar(axes, len(labels), row, longest)
                    labels.append(f"{pipeline.label}, {way}")
            if has_published:
                axes.barh(
                    len(labels), pipeline.published_s, 0.62, color="white", edgecolor=MUTED, hatch="///"
                )
                axes.text(pipeline.published_s, len(labels), f" {pipeline.published_s:g} s", va="center")
                labels.append(f"{pipeline.label}, published")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, longest * 1.15)
        axes.set_xlabel("seconds from text to pixels, one clip")
        axes.set_title(f"{results['environment']['device']}; published numbers are of one H100, by the paper")
        handles = [Patch(color=colour, label=stage) for stage, colour in _COLOURS.items()]
        handles.append(Patch(facecolor="white", edgecolor=MUTED, hatch="///", label="published"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _draw_bar(axes: Axes, position: int, row: Mapping[str, Any], longest: float) -> None:
    left = 0.0
    for stage, seconds in row["stages_s"].items():
        axes.barh(position, seconds, 0.62, left=left, color=_COLOURS[stage])
        share = seconds / row["s"]
        if seconds > 0.05 * longest:  # narrower, and the text would lie over its neighbours
            middle = left + seconds / 2
            axes.text(middle, position, f"{share:.0%}", ha="center", va="center", color="white", fontsize=9)
        left += seconds
    axes.text(left, position, f" {row['s']:.3g} s", va="center", color=INK)
