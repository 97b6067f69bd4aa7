"""``python -m sana_train.cli.page``: one static HTML page of results, FOLDER/index.html.

FOLDER is a run (curves, the convergence figure, samples that play), what `cli.sample` made (every clip with
its prompt), or what `cli.refine` made (both stages side by side, seconds and memory). The page opens from
disk, without a server, an account or scripts, and goes where its folder goes. Of a run that still trains
it shows what there is; call it again for more.

A run's panels are those of conf/dashboard/run.yaml, or of --dashboard (two_stage for runs that train a
refiner or an upsampler). The same lists make workspaces in W&B: python -m sana_train.cli.dashboard.

examples:
  python -m sana_train.cli.page runs/ltx_adapt-tiny-s0-8d0e5bcb
  python -m sana_train.cli.page runs/my_refiner --dashboard two_stage
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sana_train.cli import refine, sample
from sana_train.cli.loggers import final_metrics
from sana_train.cli.panels import keys_of, read_dashboard
from sana_train.cli.process import readable_errors
from sana_train.data.latent_file import read_latents
from sana_train.evaluation import html_page
from sana_train.training.jsonl import read_jsonl

PAGE_NAME = "index.html"
Sections = list[tuple[str, str, bool]]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.page", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("folder", type=Path, help="of a run, of samples or of refined clips")
    top.add_argument(
        "--dashboard", default="run", metavar="NAME_OR_YAML", help="panels of a run (%(default)s)"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    with readable_errors():
        sys.stdout.write(f"{write(given.folder, given.dashboard)}\n")


def write(folder: Path, dashboard: str = "run") -> Path:
    """Write the page of ``folder`` and return its path.

    Raises:
        ValueError: a folder of another kind, or a dashboard that cannot be read.
    """
    kinds = {"metrics.jsonl": _of_run, sample.RECORD_NAME: _of_samples, refine.RECORD_NAME: _of_refined}
    for name, of_kind in kinds.items():
        if (folder / name).is_file():
            head, sections = of_kind(folder, dashboard)
            html_page.write_page(folder / PAGE_NAME, folder.absolute().name, head, sections)
            return folder / PAGE_NAME
    raise ValueError(f"{folder} has nothing to show: no {', '.join(kinds)}; give the folder of a run")


def _of_run(folder: Path, dashboard: str) -> tuple[list[str], Sections]:
    lines = read_jsonl(folder / "metrics.jsonl")
    sections: Sections = []
    absent: list[str] = []
    for panel in read_dashboard(dashboard).panels:
        file = panel.picture or panel.film
        if file is not None and (folder / file).is_file():
            shown = html_page.picture(file) if panel.picture else html_page.film(file)
            sections.append((panel.title, shown, True))
        elif file is not None:
            absent.append(file)
        elif panel.numbers:
            judged = _judged(folder)
            absent += [key for key in panel.numbers if key not in judged]
            rows = {key: f"{judged[key]:.4g}" for key in panel.numbers if key in judged}
            if rows:
                sections.append((panel.title, html_page.table(rows), False))
        else:
            series, missing = _series(lines, panel.curves)
            absent += missing
            if series:
                sections.append((panel.title, html_page.curves(series), False))
    if absent:
        sections.append(("Not in this run", html_page.note(", ".join(absent)), True))
    return [html_page.table(_facts_of_run(folder, lines))], sections


def _series(
    lines: Sequence[Mapping[str, Any]], patterns: Sequence[str]
) -> tuple[dict[str, tuple[list[int], list[float]]], list[str]]:
    """(key -> (steps, values), patterns that no logged key fits)."""
    keys = list(dict.fromkeys(key for line in lines for key in line if key != "step"))
    series, missing = {}, []
    for pattern in patterns:
        found = keys_of(pattern, keys)
        if not found:
            missing.append(pattern)
        for key in found:
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            series[key] = ([step for step, _ in points], [value for _, value in points])
    return series, missing


def _judged(folder: Path) -> dict[str, float]:
    """What the exported weights were judged by, under the names that W&B knows them by."""
    record = folder / "export" / "record.json"
    return final_metrics(json.loads(record.read_text()).get("heldout", {})) if record.is_file() else {}


def _facts_of_run(folder: Path, lines: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    record = json.loads((folder / "run.json").read_text()) if (folder / "run.json").is_file() else {}
    environment = record.get("environment", {})
    facts = {
        "last logged step": lines[-1]["step"] if lines else "none yet",
        "device": environment.get("device"),
        "commit": environment.get("commit"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _of_samples(folder: Path, dashboard: str) -> tuple[list[str], Sections]:
    del dashboard
    record = json.loads((folder / sample.RECORD_NAME).read_text())
    sections: Sections = []
    for number, prompt in enumerate(record["prompts"]):
        first, size = number * record["per_prompt"], record["per_prompt"]
        names = [f"{each:04d}.mp4" for each in range(first, first + size)]
        films = [html_page.film(name) for name in names if (folder / name).is_file()]
        sections.append((prompt, "".join(films) or html_page.note("not sampled yet"), False))
    made_by = {**record["checkpoint"], "seed": record["seed"], "height, width, frames": record["size"]}
    return [html_page.table(made_by)], sections


def _of_refined(folder: Path, dashboard: str) -> tuple[list[str], Sections]:
    del dashboard
    record = json.loads((folder / refine.RECORD_NAME).read_text())
    sections: Sections = []
    for path in sorted(folder.glob("*_stages.mp4")):
        stem = path.stem.removesuffix("_stages")
        facts = json.loads((folder / f"{stem}.json").read_text())
        _, prompt = read_latents(folder / f"{stem}.safetensors")
        rows: dict[str, object] = {f"{part}, s": f"{value:.2f}" for part, value in facts["seconds"].items()}
        if facts["peak_gib"] is not None:
            rows["peak memory, GiB"] = f"{facts['peak_gib']:.1f}"
        sections.append((f"{stem}: {prompt}", html_page.film(path.name) + html_page.table(rows), True))
    refiner = record["refiner"]
    made_by = {name: refiner[name] for name in ("num_evaluations", "audio", "weights", "lora")}
    return [
        html_page.table({**made_by, "from noise": record["from_noise"], "seed": record["seed"]})
    ], sections


if __name__ == "__main__":
    main()
