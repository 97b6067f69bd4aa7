"""The record of both tiny stages: bars, controls, audio variants, evaluations, one stage alone.

    python experiments/two_stage_tiny/record.py OUT WEIGHTS MOVED [--jobs N] [KEY=VALUE ...]

WEIGHTS is a folder as data/tiny with what train.sh left there: ltx2_large, ltx2_upsampler, ltx2_refiner, and
where they are ltx2_refiner_teacher, ltx2_refiner_video (no audio branch) and, for one stage against two,
sana_ltx2_stage1 and sana_ltx2_256. MOVED is the run directory of a DiT that was moved into the tiny LTX-2
space, with its checkpoint of step 0: stage 1 after the move, and before it. Between the stages latents go
through pixels, but for `upsampled`, which has the latent upsampler; `first_sigma_*` are the teacher's walks
from other sigmas, of which 0.909 is the paper's. Each evaluation is evaluate.py's, in OUT/<name>, its output
in OUT/logs; the same command goes on where it was stopped; results.json, tables.md and figure.png are drawn
of what is done.
KEY=VALUE are overrides of all, e.g. trainer=cpu.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sana_train.cli.process import readable_errors
from sana_train.evaluation.convergence.levels import load_arrays
from sana_train.evaluation.figure_style import HEADLINE_COLOURS, INK, MUTED, new_figure
from sana_train.evaluation.reader import GROUPS
from sana_train.evaluation.record_tables import markdown_table
from sana_train.evaluation.stages.summary import Array, Bootstrap, Mean
from sana_train.utils.files import publish_file, write_json

EVALUATE = Path(__file__).parents[2] / "evaluate.py"
AUDIO = ("zero_noised", "zero_clean", "pure_noise", "isolated")
EVALUATIONS = (2, 3, 4, 5)
COARSE = ("shape", "motion", "relation", "count", "colour", "background")
MAIN, BEFORE, PAPER = "main", "before", "first_sigma_0.909"
SMALL, SINGLE, PROBE = "small", "single", "single_probe"  # one stage against two
# Three evaluations each, the paper's sigmas and those by other flow shifts.
WALKS = {
    PAPER: (0.909375, 0.725, 0.421875, 0.0),
    "first_sigma_0.414": (0.414, 0.1566, 0.0489, 0.0),
    "first_sigma_0.2": (0.2, 0.0616, 0.0179, 0.0),
    "first_sigma_0.1": (0.1, 0.0284, 0.008, 0.0),
}
_NUM_DRAWS, _PROBE_STEPS = 2000, 30
_METRICS = ("textured_psnr_db", "psnr_db", "spectrum_gap", "semantic", "colour", "texture")


@dataclass(frozen=True)
class Plan:
    """One evaluation: its folder's name, the DiT, columns, number of clips and overrides."""

    name: str
    checkpoint: Path
    columns: str
    num_clips: int
    overrides: tuple[str, ...] = ()

    def run(self, out: Path, shared: Sequence[str]) -> None:
        start = time.perf_counter()
        words = [f"checkpoint={self.checkpoint}", f"out={out / self.name}", "experiment=two_stage"]
        words += ["autoencoder=ltx2_tiny_256", f"two_stage.columns=[{self.columns}]"]
        words += [f"two_stage.num_clips={self.num_clips}", *shared, *self.overrides]
        log = out / "logs" / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            command = [sys.executable, str(EVALUATE), *words]
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            last = "\n".join(log.read_text().splitlines()[-8:])
            raise ValueError(f"{self.name}: evaluate.py ended with {code}; the end of {log}:\n{last}")
        sys.stdout.write(f"{self.name}: {time.perf_counter() - start:.0f} s\n")
        sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("out", type=Path, metavar="OUT")
    top.add_argument("weights", type=Path, metavar="WEIGHTS")
    top.add_argument("moved", type=Path, metavar="MOVED")
    top.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides of every evaluation")
    top.add_argument(
        "--jobs", type=int, default=1, metavar="N",
        help="evaluations side by side (1); one stage against two, whose seconds are compared, runs alone",
    )  # fmt: skip
    top.add_argument("--num-clips", type=int, default=512, help="held-out clips (512)")
    top.add_argument("--num-variant-clips", type=int, default=512, help="of variants (512)")
    return top


def main() -> None:
    given = parser().parse_intermixed_args()
    weights: Path = given.weights
    shared = [
        f"paths.weights={weights}",
        "two_stage.batch_size=32",
        *given.words,
    ]
    distilled = (f"refiner.weights={weights / 'ltx2_refiner'}",)
    with readable_errors():
        wanted = plans(given.moved, weights, given.num_clips, given.num_variant_clips, distilled)
        with ThreadPoolExecutor(given.jobs) as pool:
            for done in as_completed([pool.submit(plan.run, given.out, shared) for plan in wanted]):
                done.result()
                report(given.out, weights)
        small, single = (weights / name for name in ("sana_ltx2_stage1", "sana_ltx2_256"))
        if all((part / "record.json").is_file() for part in (small, single)):
            overrides = ("two_stage.num_shown=0", *distilled)
            Plan(SMALL, small, "stage1,stage2", given.num_clips, overrides).run(given.out, shared)
            judge_single(given.out, single, given.num_clips, shared)
        report(given.out, weights)
    sys.stdout.write((given.out / "tables.md").read_text())


def plans(
    moved: Path, weights: Path, num_clips: int, num_variant_clips: int, distilled: tuple[str, ...]
) -> list[Plan]:
    """All but one stage against two, the most wanted first."""
    after = moved / "export"
    columns = "stage1,stage2,ceiling,clip_stage1,clip_stage2,noise,foreign,source,transcoded"
    step_0 = moved / "checkpoints" / "step_0000000"
    found = [
        Plan(MAIN, after, columns, num_clips, distilled),
        Plan(BEFORE, step_0, "stage1,stage2", num_clips, distilled),
    ]

    def variant(name: str, *overrides: str) -> None:
        shown = "two_stage.num_shown=0"
        found.append(Plan(name, after, "clip_stage2", num_variant_clips, (shown, *overrides)))

    for mode in AUDIO[1:]:
        variant(f"audio_{mode}", *distilled, f"refiner.audio={mode}")
    video = weights / "ltx2_refiner_video"
    if (video / "record.json").is_file():
        variant("audio_none", f"refiner.weights={video}", "refiner.audio=none")
    upsampler = f"upsampler.weights={weights / 'ltx2_upsampler'}"
    variant("upsampled", *distilled, "upsampler=ltx2_tiny", upsampler)
    for num in EVALUATIONS:
        if num != 3:
            variant(f"evaluations_{num}", *distilled, f"refiner.num_evaluations={num}")
    teacher = weights / "ltx2_refiner_teacher"
    if (teacher / "record.json").is_file():
        for num in EVALUATIONS:
            overrides = (f"refiner.weights={teacher}", f"refiner.num_evaluations={num}")
            variant(f"teacher_{num}", *overrides)
        for name, times in WALKS.items():
            sigmas = "refiner.sigmas={3:[" + ",".join(map(str, times)) + "]}"
            overrides = ("two_stage.num_shown=0", f"refiner.weights={teacher}", sigmas)
            walked = "stage2,clip_stage2,noise,foreign"
            found.append(Plan(name, after, walked, num_variant_clips, overrides))
    return found


def judge_single(out: Path, single: Path, num_clips: int, shared: Sequence[str]) -> None:
    """The single stage with as many steps as take no longer than both stages, measured on this machine."""
    file = out / "single_steps.json"
    if not file.is_file():
        overrides = ("two_stage.num_shown=0", f"convergence.generator.schedule.num_steps={_PROBE_STEPS}")
        probe = Plan(PROBE, single, "single", min(num_clips, 128), overrides)
        probe.run(out, shared)
        seconds = metrics_of(out, probe.name)["seconds_per_clip"]["single"]
        both = latency(out)
        steps = max(2, math.floor(_PROBE_STEPS * both / seconds))
        write_json(file, {"num_steps": steps, "both_stages_s": both, "probe_s": seconds})
    steps = json.loads(file.read_text())["num_steps"]
    overrides = (f"convergence.generator.schedule.num_steps={steps}",)
    Plan(SINGLE, single, "single", num_clips, overrides).run(out, shared)


def metrics_of(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / name / "metrics.json").read_text())


def latency(out: Path) -> float:
    """Seconds per clip of both stages, text to pixels."""
    return sum(metrics_of(out, SMALL)["seconds_per_clip"].values())


@cache  # drawn after every plan
def per_clip(out: Path, name: str) -> dict[str, Array]:
    """``<column>/<metric>`` -> (n,), NaN where it does not apply."""
    num_clips = metrics_of(out, name)["num_clips"]
    files = [load_arrays(out / name / "clips" / f"{number:05d}.npz") for number in range(num_clips)]
    keys = dict.fromkeys(key for each in files for key in each)
    return {key: np.array([float(each.get(key, np.float32(np.nan))) for each in files]) for key in keys}


def paired(after: Array, before: Array) -> Mean:
    """The difference on the clips that both have."""
    num = min(len(after), len(before))
    mean = Bootstrap(num, _NUM_DRAWS, 0).mean(after[:num] - before[:num])
    assert mean is not None, "two columns with no clip in common"
    return mean


def alone(values: Array) -> Mean | None:
    return Bootstrap(len(values), _NUM_DRAWS, 0).mean(values)


def bars(clips: Mapping[str, Array]) -> list[dict[str, Any]]:
    """The issue's bars: on the held-out clip itself (clip_*) and on samples of its caption."""
    found: list[dict[str, Any]] = []

    def bar(name: str, mean: Mean, wanted: str, is_reached: bool) -> None:
        found.append({"bar": name, "found": mean.__dict__, "wanted": wanted, "reached": bool(is_reached)})

    for after, before in (("clip_stage2", "clip_stage1"), ("stage2", "stage1")):
        gaps = {column: clips[f"{column}/spectrum_gap"] for column in (after, before)}
        left = paired(gaps[after], 0.5 * gaps[before])
        bar(f"{after}: gap - half of {before}'s", left, "<= 0", left.high <= 0)
        if f"{after}/textured_psnr_db" in clips:
            gain = paired(clips[f"{after}/textured_psnr_db"], clips[f"{before}/textured_psnr_db"])
            bar(f"{after} - {before}: textured PSNR, dB", gain, ">= 1", gain.low >= 1)
        for name in ("texture", "frequency", *COARSE):
            key = f"accuracy/{name}"
            gain = paired(clips[f"{after}/{key}"], clips[f"{before}/{key}"])
            is_fine = name in ("texture", "frequency")
            reached = gain.low > 0 if is_fine else gain.low >= -0.02
            bar(f"{after} - {before}: {name}", gain, "> 0" if is_fine else ">= -0.02", reached)
    return found


def report(out: Path, weights: Path) -> None:
    """results.json, tables.md and figure.png of what is done."""
    done = [path.parent.name for path in sorted(out.glob("*/metrics.json"))]
    if MAIN not in done:
        return
    clips = {name: per_clip(out, name) for name in done}
    found_bars = bars(clips[MAIN])
    columns = {
        column: {metric: alone(clips[MAIN][f"{column}/{metric}"]) for metric in _METRICS
                 if f"{column}/{metric}" in clips[MAIN]}
        for column in ("stage1", "stage2", "noise", "foreign", "ceiling", "clip_stage1", "clip_stage2",
                       "source", "transcoded")
    }  # fmt: skip
    for column in ("stage1", "stage2") if BEFORE in done else ():
        columns[f"{column}, before the move"] = {
            metric: alone(clips[BEFORE][f"{column}/{metric}"]) for metric in _METRICS
            if f"{column}/{metric}" in clips[BEFORE]
        }  # fmt: skip
    for column in ("stage2", "noise", "foreign") if PAPER in done else ():
        found = {metric: alone(clips[PAPER][f"{column}/{metric}"]) for metric in _METRICS
                 if f"{column}/{metric}" in clips[PAPER]}  # fmt: skip
        columns[f"{column}, paper's sigmas"] = found
    chance = metrics_of(out, MAIN)["chance"]
    variants = _variants(clips)
    thesis = _thesis(out, weights, clips) if SINGLE in done else []
    with publish_file(out / "tables.md") as scratch:
        scratch.write_text(_tables(found_bars, columns, variants, thesis, chance))
    _figure(out / "figure.png", columns, variants, chance)
    plain = {
        "bars": found_bars,
        "columns": {k: {m: v and v.__dict__ for m, v in each.items()} for k, each in columns.items()},
        "variants": variants,
        "thesis": thesis,
        "chance": chance,
        "num_clips": metrics_of(out, MAIN)["num_clips"],
        "seconds_per_clip": metrics_of(out, MAIN)["seconds_per_clip"],
        "environment": metrics_of(out, MAIN).get("environment"),
    }
    write_json(out / "results.json", plain)


def _variants(clips: Mapping[str, Mapping[str, Array]]) -> list[dict[str, Any]]:
    """Each variant's clip_stage2, and its difference to the distilled refiner as the paper runs it."""
    default = {key: value for key, value in clips[MAIN].items() if key.startswith("clip_stage2/")}
    rows = []
    for name, values in {"audio_zero_noised, evaluations_3": default, **clips}.items():
        if name in (MAIN, BEFORE, SMALL, SINGLE, PROBE):
            continue
        row: dict[str, Any] = {"variant": name}
        for metric in _METRICS:
            key = f"clip_stage2/{metric}"
            if key in values and (mean := alone(values[key])) is not None:
                row[metric] = mean.mean
                if values is not default:
                    row[f"{metric}, difference"] = paired(values[key], default[key]).__dict__
        rows.append(row)
    return rows


def _thesis(out: Path, weights: Path, clips: Mapping[str, Mapping[str, Array]]) -> list[dict[str, Any]]:
    """Both stages against one, on samples of the same captions."""
    two_parts = ("sana_ltx2_stage1", "ltx2_refiner_teacher", "ltx2_refiner")
    rows = []
    for label, parts, values, column, seconds in (
        ("stage 1 + refiner", two_parts, clips[SMALL], "stage2", latency(out)),
        ("one stage", ("sana_ltx2_256",), clips[SINGLE], "single",
         metrics_of(out, SINGLE)["seconds_per_clip"]["single"]),
    ):  # fmt: skip
        row: dict[str, Any] = {
            "model": label,
            "training_s": _training_s(weights, parts),
            "latency_s": seconds,
        }
        for metric in ("semantic", "colour", "texture", "spectrum_gap"):
            mean = alone(values[f"{column}/{metric}"])
            row[metric] = mean and mean.__dict__
            gain = paired(clips[SMALL][f"stage2/{metric}"], clips[SINGLE][f"single/{metric}"])
            row[f"{metric}, two stages - one"] = gain.__dict__
        rows.append(row)
    return rows


def _training_s(weights: Path, parts: Sequence[str]) -> float | None:
    """Seconds of one GPU, set-up and measuring included, as train.sh took them; None if one is not known."""
    files = [weights / part / "seconds.json" for part in parts]
    if not all(file.is_file() for file in files):
        return None
    return float(sum(json.loads(file.read_text())["seconds"] for file in files))


def _text(mean: Mapping[str, Any] | Mean | None, *, sign: bool = False) -> str:
    if mean is None:
        return "-"
    mean = mean if isinstance(mean, Mean) else Mean(**mean)
    return mean.text(3, has_sign=sign)


def _tables(
    found_bars: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Mapping[str, Mean | None]],
    variants: Sequence[Mapping[str, Any]],
    thesis: Sequence[Mapping[str, Any]],
    chance: Mapping[str, float],
) -> str:
    rows = [["bar", "found [95 %]", "wanted", "reached"]]
    rows += [
        [each["bar"], _text(each["found"], sign=True), each["wanted"], "yes" if each["reached"] else "no"]
        for each in found_bars
    ]
    parts = ["# Both tiny stages", "## Bars", markdown_table(rows)]
    rows = [["column", "semantic", "colour", "texture", "top-band gap"]]
    for column, means in columns.items():
        cells = [means.get(name) for name in ("semantic", "colour", "texture", "spectrum_gap")]
        rows.append([column, *(f"{cell.mean:.3f}" if cell else "-" for cell in cells)])
    parts += ["## Columns", markdown_table(rows)]
    guess = ", ".join(f"{name} {value:.3f}" for name, value in chance.items())
    parts += [f"`noise` is the refiner from unit noise, `foreign` another clip's latents. Chance: {guess}."]
    rows = [["variant, on the held-out clip itself", "textured dB", "difference [95 %]", "gap", "texture"]]
    for row in variants:
        difference = row.get("textured_psnr_db, difference")
        cells = [row.get(name) for name in ("textured_psnr_db", "spectrum_gap", "texture")]
        first, gap, texture = (f"{cell:.3f}" if cell is not None else "-" for cell in cells)
        rows.append([row["variant"], first, _text(difference, sign=True), gap, texture])
    parts += ["## Audio and evaluations", markdown_table(rows)]
    if thesis:
        rows = [["", *(str(row["model"]) for row in thesis)]]
        for key, label in (("training_s", "training, GPU s"), ("latency_s", "latency, s a clip")):
            rows.append(
                [label, *(f"{row[key]:.3f}" if row[key] is not None else "not known" for row in thesis)]
            )
        for metric in ("semantic", "colour", "texture", "spectrum_gap"):
            rows.append([metric, *(_text(row[metric]) for row in thesis)])
            gain = _text(thesis[0][f"{metric}, two stages - one"], sign=True)
            rows.append([f"{metric}, difference", gain, ""])
        parts += ["## Two stages or one", markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


def _figure(
    path: Path,
    columns: Mapping[str, Mapping[str, Mean | None]],
    variants: Sequence[Mapping[str, Any]],
    chance: Mapping[str, float],
) -> None:
    """Accuracy by column with chance; the top band's gap; textured PSNR of the variants."""
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
        named = [row for row in variants if "textured_psnr_db" in row]
        values = [row["textured_psnr_db"] for row in named]
        names = [row["variant"] for row in named]
        texture.plot(values, names, "o", color=HEADLINE_COLOURS["texture"])
        before = columns["clip_stage1"].get("textured_psnr_db")
        if before is not None:
            texture.axvline(before.mean, color=MUTED, linestyle="--")
        texture.set_title("Textures, dB (dashed: stage 1)")
        texture.invert_yaxis()


if __name__ == "__main__":
    main()
