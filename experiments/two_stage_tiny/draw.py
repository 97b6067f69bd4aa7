"""results.json, tables.md and figure.png of both tiny stages, from clips/ and facts.json and nothing else.

python experiments/two_stage_tiny/draw.py [FOLDER]    (FOLDER: record.py's OUT; without one, this folder)
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sana_train.evaluation.convergence.levels import load_arrays
from sana_train.evaluation.figure_style import HEADLINE_COLOURS, INK, MUTED, new_figure
from sana_train.evaluation.reader import GROUPS
from sana_train.evaluation.record_tables import markdown_table
from sana_train.evaluation.stages.summary import Array, Bootstrap, Mean
from sana_train.utils.files import publish_file, write_json

COARSE = ("shape", "motion", "relation", "count", "colour", "background")
MAIN, BEFORE, PAPER = "main", "before", "first_sigma_0.909"
SMALL, SINGLE = "small", "single"  # one stage against two
# Alone on their machine, for seconds.
TIMED = ("small_timed", "single_timed", "single_probe_10", "single_probe_30")
FIRST = "first"  # the refiner before it was trained on
ELSEWHERE = "on_a_cpu"  # the main evaluation there, which others of that device are held against
COLUMNS = (
    "stage1", "stage2", "noise", "foreign", "ceiling", "clip_stage1", "clip_stage2", "source", "transcoded",
)  # fmt: skip
# By 256 of the held-out clips, the first, each training is judged as it ends; a choice was made by that.
NUM_SEEN = 256
_NUM_DRAWS = 2000
_FAR_DB = 2.0  # further variants are in the tables alone
_METRICS = ("textured_psnr_db", "psnr_db", "spectrum_gap", "semantic", "colour", "texture")

Clips = Mapping[str, Array]  # <column>/<metric> -> (n,), NaN where it does not apply
Means = Mapping[str, Mean | None]


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0]) if arguments else Path(__file__).parent
    for name in (f"clips/{MAIN}.npz", "facts.json"):
        if not (folder / name).is_file():
            sys.exit(f"no {name} in {folder.absolute()}; record.py OUT WEIGHTS MOVED makes it")
    facts = json.loads((folder / "facts.json").read_text())
    clips = {path.stem: read(path) for path in sorted((folder / "clips").glob("*.npz"))}
    about = facts["evaluations"][MAIN]
    found_bars, columns, variants = bars(clips[MAIN]), columns_of(clips), variants_of(clips, facts)
    thesis = thesis_of(clips, facts) if SINGLE in clips else []
    with publish_file(folder / "tables.md") as scratch:
        scratch.write_text(tables(found_bars, columns, variants, thesis, about["chance"]))
    draw(folder / "figure.png", columns, variants, about["chance"])
    plain = {
        "bars": found_bars,
        "columns": {name: {m: v and v.__dict__ for m, v in each.items()} for name, each in columns.items()},
        "variants": variants,
        "thesis": thesis,
        **about,
    }
    write_json(folder / "results.json", plain)
    sys.stdout.write((folder / "tables.md").read_text())


def read(path: Path) -> Clips:
    try:
        return load_arrays(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        sys.exit(f"{path} is damaged ({error}); the same record.py OUT WEIGHTS MOVED writes it anew")


def alone(values: Array) -> Mean | None:
    return Bootstrap(len(values), _NUM_DRAWS, 0).mean(values)


def paired(after: Array, before: Array) -> Mean:
    """The difference on the clips that both have."""
    num = min(len(after), len(before))
    mean = alone(after[:num] - before[:num])
    assert mean is not None, "two columns with no clip in common"
    return mean


def bars(clips: Clips) -> list[dict[str, Any]]:
    """On the held-out clip itself (clip_*) and on samples of its caption; reached by the whole interval.

    ``unseen`` is the same on clips by which nothing was chosen, where there are such.
    """
    found: list[dict[str, Any]] = []

    def bar(name: str, change: Array, at_least: float, wanted: str, *, is_strict: bool = False) -> None:
        mean = alone(change)
        assert mean is not None, f"{name}: no clip has it"
        unseen = alone(change[NUM_SEEN:]) if len(change) > NUM_SEEN else None
        reached = mean.low > at_least if is_strict else mean.low >= at_least
        row = {"bar": name, "found": mean.__dict__, "wanted": wanted, "reached": bool(reached)}
        found.append({**row, "unseen": unseen and unseen.__dict__})

    for after, before in (("clip_stage2", "clip_stage1"), ("stage2", "stage1")):
        gaps = {column: clips[f"{column}/spectrum_gap"] for column in (after, before)}
        bar(f"half of {before}'s gap - {after}'s", 0.5 * gaps[before] - gaps[after], 0.0, ">= 0")
        if f"{after}/textured_psnr_db" in clips:
            gain = clips[f"{after}/textured_psnr_db"] - clips[f"{before}/textured_psnr_db"]
            bar(f"{after} - {before}: textured PSNR, dB", gain, 1.0, ">= 1")
        for name in ("texture", "frequency", *COARSE):
            gain = clips[f"{after}/accuracy/{name}"] - clips[f"{before}/accuracy/{name}"]
            is_fine = name in ("texture", "frequency")
            label = f"{after} - {before}: {name}"
            bar(label, gain, 0.0 if is_fine else -0.02, "> 0" if is_fine else ">= -0.02", is_strict=is_fine)
    return found


def columns_of(clips: Mapping[str, Clips]) -> dict[str, Means]:
    """Of the main evaluation, of stage 1 before its move, and of the paper's sigmas."""

    def means(evaluation: str, column: str) -> Means:
        values = clips[evaluation]
        return {m: alone(values[f"{column}/{m}"]) for m in _METRICS if f"{column}/{m}" in values}

    columns = {column: means(MAIN, column) for column in COLUMNS}
    if kept := means(MAIN, "foreign/kept"):
        columns["foreign, by its own caption"] = kept
    for column in ("stage1", "stage2") if BEFORE in clips else ():
        columns[f"{column}, before the move"] = means(BEFORE, column)
    for column in ("stage2", "noise", "foreign") if PAPER in clips else ():
        columns[f"{column}, teacher, paper's sigmas"] = means(PAPER, column)
    return columns


def variants_of(clips: Mapping[str, Clips], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each variant's clip_stage2, and its difference to that of the main evaluation, on its own device.

    Weights without an audio branch are compared with the refiner that was trained as long, if it is there.
    """
    others = {name: c for name, c in clips.items() if name not in (MAIN, BEFORE, SMALL, SINGLE, *TIMED)}
    num = max((len(array) for each in others.values() for array in each.values()), default=None)
    default = {key: array[:num] for key, array in clips[MAIN].items() if key.startswith("clip_stage2/")}
    devices = {name: each.get("environment", {}).get("device") for name, each in facts["evaluations"].items()}
    rows = []
    for name, values in {"audio_zero_noised, evaluations_3": default, **others}.items():
        is_there = ELSEWHERE in clips and name in devices and devices[name] == devices[ELSEWHERE]
        beside = clips[ELSEWHERE] if is_there and name != ELSEWHERE else default
        if name == "audio_none" and FIRST in clips:
            beside = clips[FIRST]
        label = f"{name}, beside {FIRST}" if FIRST in clips and beside is clips[FIRST] else name
        some = next(array for key, array in values.items() if key.startswith("clip_stage2/"))
        row: dict[str, Any] = {"variant": label, "num_clips": len(some), "device": devices.get(name)}
        for metric in _METRICS:
            key = f"clip_stage2/{metric}"
            if key in values and (mean := alone(values[key])) is not None:
                row[metric] = mean.mean
                if values is not default:
                    row[f"{metric}, difference"] = paired(values[key], beside[key]).__dict__
        rows.append(row)
    return rows


def thesis_of(clips: Mapping[str, Clips], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both stages against one, on samples of the same captions."""
    trained = facts["training_s"]
    refiner = ("ltx2_refiner_first",) if FIRST in clips else ("ltx2_refiner_teacher", "ltx2_refiner")
    two_parts = ("sana_ltx2_stage1", *refiner)
    rows = []
    for label, parts, name, column in (
        ("stage 1 + refiner", two_parts, SMALL, "stage2"),
        ("one stage", ("sana_ltx2_256",), SINGLE, "single"),
    ):
        known = all(part in trained for part in parts)
        row: dict[str, Any] = {
            "model": label,
            "training_s": sum(trained[part] for part in parts) if known else None,
            "latency_s": sum(facts["evaluations"][f"{name}_timed"]["seconds_per_clip"].values()),
        }
        for metric in ("semantic", "colour", "texture", "spectrum_gap"):
            mean = alone(clips[name][f"{column}/{metric}"])
            row[metric] = mean and mean.__dict__
            gain = paired(clips[SMALL][f"stage2/{metric}"], clips[SINGLE][f"single/{metric}"])
            row[f"{metric}, two stages - one"] = gain.__dict__
        rows.append(row)
    return rows


def text(mean: Mapping[str, Any] | Mean | None, *, sign: bool = False) -> str:
    if mean is None:
        return "-"
    mean = mean if isinstance(mean, Mean) else Mean(**mean)
    return mean.text(3, has_sign=sign)


def tables(
    found_bars: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Means],
    variants: Sequence[Mapping[str, Any]],
    thesis: Sequence[Mapping[str, Any]],
    chance: Mapping[str, float],
) -> str:
    rows = [["bar", "found [95 %]", "wanted", "reached", "on unseen clips"]]
    for each in found_bars:
        reached = "yes" if each["reached"] else "no"
        found, unseen = (text(each[key], sign=True) for key in ("found", "unseen"))
        rows.append([each["bar"], found, each["wanted"], reached, unseen])
    parts = ["# Both tiny stages", "## Bars", markdown_table(rows)]
    parts += ["Reached by the whole interval. Unseen: less the 256 clips that each training is judged by."]
    rows = [["column", "clips", "semantic", "colour", "texture", "top-band gap"]]
    for column, means in columns.items():
        cells = [means.get(name) for name in ("semantic", "colour", "texture", "spectrum_gap")]
        num = max((cell.num_clips for cell in cells if cell), default=0)
        rows.append([column, str(num), *(f"{cell.mean:.3f}" if cell else "-" for cell in cells)])
    parts += ["## Columns", markdown_table(rows)]
    guess = ", ".join(f"{name} {value:.3f}" for name, value in chance.items())
    parts += [f"`noise` is the refiner from unit noise, `foreign` another clip's latents. Chance: {guess}."]
    rows = [["variant, on the clip itself", "clips", "textured dB", "difference [95 %]", "gap", "texture"]]
    for row in variants:
        difference = row.get("textured_psnr_db, difference")
        cells = [row.get(name) for name in ("textured_psnr_db", "spectrum_gap", "texture")]
        first, gap, texture = (f"{cell:.3f}" if cell is not None else "-" for cell in cells)
        rows.append([row["variant"], str(row["num_clips"]), first, text(difference, sign=True), gap, texture])
    parts += ["## Audio, evaluations, first sigmas", markdown_table(rows)]
    parts += ["Differences are of the same clips, so of as many as the row says."]
    parts += ["Of audio plumbing only: no variant hands the video stream latents of the clip's own sound."]
    if thesis:
        rows = [["", *(str(row["model"]) for row in thesis)]]
        for key, label in (("training_s", "training, s of a shared GPU"), ("latency_s", "latency, s a clip")):
            cells = [row[key] for row in thesis]
            rows.append([label, *(f"{cell:.3f}" if cell is not None else "not known" for cell in cells)])
        for metric in ("semantic", "colour", "texture", "spectrum_gap"):
            rows.append([metric, *(text(row[metric]) for row in thesis)])
            gain = text(thesis[0][f"{metric}, two stages - one"], sign=True)
            rows.append([f"{metric}, difference", gain, ""])
        parts += ["## Two stages or one", markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


def draw(
    path: Path,
    columns: Mapping[str, Means],
    variants: Sequence[Mapping[str, Any]],
    chance: Mapping[str, float],
) -> None:
    """Accuracy by column with chance; the top band's gap; textured PSNR of the variants, paired."""
    with new_figure(13.0, 4.2, path) as figure:
        accuracy, gap, texture = figure.subplots(1, 3)
        shown = [name for name in ("stage1", "stage2", "noise", "foreign") if columns[name].get("semantic")]
        for i, metric in enumerate(("semantic", "colour", "texture")):
            means = [columns[name][metric] for name in shown]
            places = np.arange(len(shown)) + 0.26 * (i - 1)
            heights = [mean.mean if mean else np.nan for mean in means]
            accuracy.bar(places, heights, 0.24, label=metric, color=HEADLINE_COLOURS[metric])
            guess = float(np.mean([chance[name] for name in GROUPS[metric] if name in chance]))
            accuracy.hlines([guess] * len(places), places - 0.12, places + 0.12, color=INK, linestyle=":")
        accuracy.set_xticks(np.arange(len(shown)), shown)
        accuracy.set_title("Read right (dotted: chance)")
        accuracy.legend(loc="upper right")
        gaps = {name: means["spectrum_gap"] for name, means in columns.items() if means.get("spectrum_gap")}
        gap.barh(list(gaps), color=MUTED, width=[mean.mean if mean else np.nan for mean in gaps.values()])
        gap.set_title("Gap of the top band, log power")
        gap.invert_yaxis()
        found = [(row["variant"], row.get("textured_psnr_db, difference")) for row in variants]
        shown_rows = [(name, of) for name, of in found if of and abs(of["mean"]) < _FAR_DB]
        values = np.array([(of["mean"], of["low"], of["high"]) for _, of in shown_rows]).reshape(-1, 3)
        texture.errorbar(
            values[:, 0], [name for name, _ in shown_rows], color=HEADLINE_COLOURS["texture"], fmt="o",
            xerr=np.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]),
        )  # fmt: skip
        texture.axvline(0.0, color=MUTED, linestyle="--")
        texture.set_title("Textures less stage 2's, dB")
        texture.invert_yaxis()


if __name__ == "__main__":
    main(sys.argv[1:])
