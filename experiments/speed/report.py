"""The tables of this record, from the json of its runs: writes OUT/results.md.

    python experiments/speed/report.py [OUT]

OUT (this folder) holds ``peers``, ``ours`` and ``stage_two``, each with the results.json of its command; what
is not there is named. ``ours_*`` are later runs of the command of ``ours``, ``kernels`` holds runs of
kernels.py, under any names. Nothing in results.md is written by hand.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sana_train.evaluation.record_tables import markdown_table
from sana_train.evaluation.speed import tables
from sana_train.evaluation.speed.store import RESULTS_FILE
from sana_train.utils.files import publish_file

# What was wanted on one H200: (group, batch, recompute, ms at most, GiB at most).
WANTED = (
    ("train", 1, "none", 215.0, 45.0),
    ("train", 1, "full", 290.0, 34.0),
    ("train", 4, None, 820.0, None),
    ("denoise", 2, None, 130.0, None),
)
_WIDTH = 100
_FITS_80_GB_GIB = 74.0  # what an H100 has, less what allocators and libraries take


def read(out: Path, name: str) -> dict[str, Any] | None:
    file = out / name / RESULTS_FILE
    return json.loads(file.read_text()) if file.is_file() else None


def bars(peers: dict[str, Any]) -> str:
    """The fastest of ours beside each bar, by any kernels and, where none is said, any recomputation."""
    rows = [["step", "batch", "recompute", "way", "ms", "wanted", "GiB", "wanted", ""]]
    for group, batch, recompute, ms, gib in WANTED:
        ours = [
            row
            for row in peers["rows"]
            if row["group"] == group and row["way"] != "diffusers" and not row["error"]
            and row["batch"] == batch and recompute in (None, row["recompute"])
        ]  # fmt: skip
        rows.append(_bar(group, batch, recompute, ms, gib, ours))
        if batch == 4:
            small = [row for row in ours if (row["peak_gib"] or 0.0) <= _FITS_80_GB_GIB]
            rows.append(_bar(f"{group}, in 80 GB", batch, recompute, None, _FITS_80_GB_GIB, small))
    return markdown_table(rows)


def _bar(
    group: str, batch: int, recompute: str | None, ms: float | None, gib: float | None, ours: list[dict]
) -> list[str]:
    wanted = ["" if bar is None else f"<= {bar:g}" for bar in (ms, gib)]
    if not ours:
        return [group, str(batch), recompute or "any", "none", "", wanted[0], "", wanted[1], "missed"]
    best = min(ours, key=lambda row: row["ms"])
    is_met = (ms is None or best["ms"] <= ms) and (gib is None or (best["peak_gib"] or 0.0) <= gib)
    memory = "" if best["peak_gib"] is None else f"{best['peak_gib']:.1f}"
    verdict = "met" if is_met else "missed"
    policy = best["recompute"] or "-"
    return [
        group,
        str(batch),
        policy,
        best["way"],
        f"{best['ms']:.1f}",
        wanted[0],
        memory,
        wanted[1],
        verdict,
    ]


def stage_two(content: dict[str, Any]) -> str:
    """One evaluation of the refiner, and its self-attention alone."""
    rows = [["clip", "tokens", "way", "ms", "range", "of stock", "ceiling", "GiB", "off by"]]
    ceiling = content["ceilings"]["matmul_flops"]
    attention = [["clip", "self-attention by", "ms", "of ceiling", "stock gets"]]
    for row in content["rows"]:
        if row["error"]:
            continue
        share = f"{row['flops'] / row['ms'] * 1e3 / ceiling:.1%}"
        if row["group"] == "attention":
            attention.append([row["clip"], row["way"], f"{row['ms']:.2f}", share, row["stock_gets"]])
            continue
        stock = next(r for r in content["rows"] if r["clip"] == row["clip"] and r["way"] == "stock")
        of_stock = f"{row['ms'] / stock['ms']:.3f}" if stock["ms"] else ""
        low, high = row["range_ms"]
        numbers = [f"{row['ms']:.0f}", f"{low:.0f} to {high:.0f}", of_stock, share]
        memory = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        distance = f"{row['distance']:.0e}"
        rows.append([row["clip"], f"{row['num_tokens']:,}", row["way"], *numbers, memory, distance])
    parts = [markdown_table(rows)]
    if len(attention) > 1:
        parts.append(markdown_table(attention))
    for row in content["rows"]:
        if "breakdown" in row:
            kinds = row["breakdown"]["by_kind_ms"].items()
            text = ", ".join(f"{kind} {ms:.0f}" for kind, ms in kinds)
            sentence = f"Kernels of {row['way']} at {row['clip']}, ms: {text}."
            parts.append(textwrap.fill(sentence, _WIDTH))
    return "\n\n".join(parts)


def kernel_runs(out: Path) -> list[str]:
    """What each run of kernels.py found: steps, where their time goes, errors beside plain PyTorch's."""
    parts = []
    for file in sorted((out / "kernels").glob("*.json")):
        content = json.loads(file.read_text())
        facts = content["environment"]
        where = f"{facts['device']}, torch {facts['torch']}, commit {facts['commit']}."
        parts += [f"### kernels/{file.name}", where, *_kernel_steps(content)]
        if "error_ratios" in content:
            parts.append(_error_ratios(content["error_ratios"], len(content["errors"])))
    return parts


def _kernel_steps(content: dict[str, Any]) -> list[str]:
    found = [row for row in [*content.get("train", []), *content.get("denoise", [])] if "families_ms" in row]
    if not all(isinstance(row["kernels"], str) for row in found):
        return ["Its steps do not say by which kernels: first plain PyTorch's, then fused, then compiled."]
    rows = [["step", "batch", "kernels", "recompute", "ms", "forward + backward", "peak GiB"]]
    kinds = []
    for row in found:
        name = "train" if "step_ms" in row else "denoise"
        numbers = [
            row.get("step_ms", row.get("denoise_ms")),
            row.get("forward_backward_ms"),
            row.get("peak_gib"),
        ]
        of = [name, str(row.get("batch", 2)), row["kernels"], row.get("recompute", "-")]
        rows.append([*of, *("" if number is None else f"{number:.1f}" for number in numbers)])
        kinds.append(_kinds(", ".join(of[::2] + of[3:]), row["families_ms"]))
    return [markdown_table(rows), "\n".join(kinds)] if kinds else []


def _kinds(name: str, families: dict[str, float]) -> str:
    text = f"- {name}, ms: " + ", ".join(f"{kind} {ms:.1f}" for kind, ms in families.items())
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ")


def _error_ratios(found: list[dict[str, Any]], num_inputs: int) -> str:
    rows = [["kernels", "output", "median layer", "over 1.1", "worst layer", "its ratio"]]
    for row in found:
        over, (worst, ratio) = f"{row['over_1.1']} of {row['of']}", row["worst"][0]
        numbers = [f"{row['output']:.3f}", f"{row['median']:.3f}", over, worst, f"{ratio:.4g}"]
        rows.append([row["kernels"], *numbers])
    return f"Errors over plain PyTorch's in bfloat16, medians of {num_inputs} inputs:\n\n" + markdown_table(
        rows
    )


def benchmark(content: dict[str, Any]) -> list[str]:
    """A run of cli.benchmark."""
    parts = [tables.headline(content)]
    for title, table in (
        ("Training step", tables.steps_table(content, "train")),
        ("Where its time goes, ms", tables.breakdown_table(content)),
        ("Kernel by kernel, plain PyTorch", tables.longest_kernels(content, "reference")),
        ("Kernel by kernel, fused", tables.longest_kernels(content, "fused", 20)),
        ("Optimisers alone", tables.optimiser_table(content)),
        ("Sharded over one device", tables.steps_table(content, "fsdp2", "one copy")),
        ("Evaluation with guidance", tables.steps_table(content, "denoise")),
        ("Cost against frames (ours/frames.png)", tables.frames_table(content)),
    ):
        parts += [f"### {title}", table] if table else []
    return parts


def report(out: Path) -> str:
    peers, ours, refiner = (read(out, name) for name in ("peers", "ours", "stage_two"))
    parts = ["# Speed"]
    if peers is not None:
        parts += ["## Beside diffusers", tables.headline(peers), bars(peers)]
        parts += [tables.steps_table(peers, group, "diffusers") for group in ("train", "denoise")]
        parts.append(tables.outputs_table(peers))
    if ours is not None:
        parts += ["## Ours", *benchmark(ours)]
    for file in sorted(out.glob(f"ours_*/{RESULTS_FILE}")):
        parts += [f"## {file.parent.name}", *benchmark(json.loads(file.read_text()))]
    if refiner is not None:
        facts = refiner["facts"]
        where = f"{facts['device']}, torch {facts['torch']}, commit {facts['commit']}."
        parts += ["## Stage 2", where, stage_two(refiner)]
    kernels = kernel_runs(out)
    parts += ["## Kernels", *kernels] if kernels else []
    missing = [
        name for name, found in (("peers", peers), ("ours", ours), ("stage_two", refiner)) if found is None
    ]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parent)
    given = parser.parse_args(arguments)
    with publish_file(given.out / "results.md") as scratch:
        scratch.write_text(report(given.out), encoding="utf-8")


if __name__ == "__main__":
    main()
