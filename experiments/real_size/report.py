"""The parts of this record that are there, as one JSON and one page of tables.

    python experiments/real_size/report.py OUT

Reads OUT/parts/*.json; writes OUT/results.json and OUT/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sana_train.utils.files import publish_file, write_json

Part = dict[str, Any]


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def loading(written: Part, loaded: Part) -> list[str]:
    report = loaded["load_report"]
    kept, reshaped, changed = report["loaded"], report["reshaped"], loaded["changed_while_loading"]
    host = {key: loaded["host_peak_gib"][key] for key in ("anonymous", "file")}
    rows = [
        ["tensors, values", f"{written['num_tensors']}, {written['num_values']:,}"],
        ["file, GiB", number(written["file_gib"])],
        ["parameters of the adapted network", f"{loaded['num_parameters']:,}"],
        ["loaded, reshaped, wrong after loading", f"{len(kept)}, {len(reshaped)}, {len(changed)}"],
        ["seconds, from the page cache", number(loaded["seconds"])],
        ["network, GiB", number(loaded["network_gib"])],
        ["device peak, GiB (networks)", _peak(loaded["device_peak_gib"], loaded["copies_on_device"])],
        ["host peak of its own, GiB", number(host["anonymous"])],
        ["... of which by loading", number(loaded["host_anonymous_added_gib"])],
        ["host peak of mapped files, GiB", number(host["file"])],
    ]
    return ["## Loading the 480p file into 128 channels", "", *table(["what", "measured"], rows)]


def _peak(gib: float | None, copies: float | None) -> str:
    return "-" if gib is None else f"{gib:.2f} ({copies:.3f})"


def steps(parts: Sequence[Part]) -> list[str]:
    head = [
        "pass",
        "weights",
        "compiled",
        "recompute",
        "ms",
        "range",
        "tokens/s",
        "MFU",
        "allocated GiB",
        "reserved GiB",
    ]
    rows = []
    for row in (row for part in parts for row in part["rows"]):
        names = [
            row["pass"],
            row["weights"],
            "yes" if row["compiled"] else "no",
            row.get("recompute", "none"),
        ]
        if "error" in row:
            rows.append([*names, row["error"], *["-"] * 5])
            continue
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        low, high = row["ms_range"]
        speed = [number(row["ms"], 1), f"{low:.1f} to {high:.1f}", number(row["tokens_per_s"], 0), mfu]
        memory = [number(row.get(key)) for key in ("allocated_gib", "reserved_gib")]
        rows.append([*names, *speed, *memory])
    first = parts[0]
    size = " x ".join(map(str, first["grid"]))
    text = [
        f"{size} latents, {first['num_tokens']:,} tokens, {first['num_context']} text tokens, batch 1.",
    ]
    return ["## The DiT", "", *text, "", *table(head, rows)]


def loop(part: Part) -> list[str]:
    head = ["recompute", "ms a clip", "tokens/s", "MFU", "waiting for data", "peak GiB", "counted GiB"]
    rows = []
    for row in part["rows"]:
        mfu = row.get("speed/mfu")
        rows.append(
            [
                row["recompute"],
                number(row["clip_ms"], 1),
                number(row["speed/tokens_per_s"], 0),
                "-" if mfu is None else f"{mfu:.1%}",
                f"{row['speed/data_wait_share']:.2%}",
                number(row.get("speed/peak_memory_gib")),
                number(row["counted_gib"]),
            ]
        )
    kernels = part.get("kernels", "reference")
    text = (
        f"Cached latents and captions by {part['workers']} loader workers, AdamW and averages included; "
        f"model.kernels={kernels}."
    )
    return [f"## The training loop, {kernels} kernels", "", text, "", *table(head, rows)]


def precompute(part: Part) -> list[str]:
    rows = [
        [number(turn["bare_s"], 2), number(turn["pipeline_s"], 2), f"{turn['ratio']:.1%}"]
        for turn in part["turns"]
    ]
    text = (
        f"{part['clips']} clips of {part['clip']} in each turn, {part['dtype']}, "
        f"batches of {part['batch_size']}, {part['cores']} cores; "
        f"the median is {part['ratio']:.1%} of the bare encoder's throughput."
    )
    head = ["bare encoder s", "pipeline from host memory s", "kept"]
    captions = "Gemma-2-2b" if part.get("captions") == "gemma2" else "hashed"
    return [f"## Precompute, LTX-2, {captions} captions", "", text, "", *table(head, rows)]


def decoding(part: Part, encode_s: float | None) -> list[str]:
    head = ["content", "Mbit/s", "threads", "load", "frames/s", "clips/s", "core s a clip", "cores for a GPU"]
    rows = [
        [
            row["content"],
            number(row["mbit_per_s"], 1),
            str(row["threads"]),
            number(row["load_average"], 1),
            number(row["frames_per_s"], 0),
            number(row["clips_per_s"]),
            number(row["core_s_per_clip"]),
            "-" if encode_s is None else number(row["core_s_per_clip"] / encode_s, 1),
        ]
        for row in part["rows"]
    ]
    text = (
        f"{part['clips']} clips of {part['clip']} from shards, H.264 4:2:0 at crf 16 as `cli.prepare_data` "
        f"writes them, {part['environment']['device']}, load average before each. Cores for a GPU are "
        f"computed: core seconds over the {number(encode_s, 3)} s in which LTX-2 encodes a clip (below)."
    )
    return ["## Decoding, alone", "", text, "", *table(head, rows)]


def exports(part: Part) -> list[str]:
    head = ["command", "s", "own memory GiB", "with mapped files GiB", "one forward differs by", "disk GiB"]
    rows = [
        [
            row["command"],
            number(row["seconds"], 1),
            *(number(row["host_peak_gib"][kind]) for kind in ("anonymous", "both")),
            f"{row['difference']:.1e}" if "difference" in row else "-",
            number(row.get("disk_gib")),
        ]
        for row in part["rows"]
    ]
    loads = ", ".join(f"{row['load_average']:.1f}" for row in part["rows"])
    text = (
        f"{part['environment']['device']}, {part['environment']['num_threads']} of them used by torch; load "
        f"averages before each row: {loads}. Disk: of loading, the export in bf16."
    )
    return ["## Export and verify, on a CPU", "", text, "", *table(head, rows)]


def ways(name: str, part: Part) -> list[str]:
    head = [
        "way",
        "encode s",
        "of first",
        "decode s",
        "of first",
        "peak GiB",
        "reserved GiB",
        "error enc, dec",
    ]
    rows = []
    for row in part["rows"]:
        encode, decode, error = row["encode"], row["decode"], row["error"]
        peaks = [
            max((each[key] for each in (encode, decode) if key in each), default=None)
            for key in ("allocated_gib", "reserved_gib")
        ]
        times = [number(each[key], 3) for each in (encode, decode) for key in ("s", "of_first")]
        errors = f"{error['encode']:.1e}, {error['decode']:.1e}"
        rows.append([row["way"], *times, *map(number, peaks), errors])
    wanted = part["wanted_s"]
    goal = ""
    if wanted is not None:
        seconds = zip(("encode", "decode"), wanted, strict=True)
        goal = "; wanted: " + ", ".join(f"{what} <= {s} s" for what, s in seconds if s is not None)
    text = f"{part['clip']}, {part['dtype']}, {part['rounds']} rounds in turns{goal}."
    return [f"## {part['autoencoder']}: {name}", "", text, "", *table(head, rows)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out = parser.parse_args(arguments).out
    parts: dict[str, Part] = {
        path.stem: json.loads(path.read_text()) for path in sorted((out / "parts").glob("*.json"))
    }
    lines = ["# True size", ""]
    devices = sorted({str(part["environment"]["device"]) for part in parts.values()})
    lines += [f"On {'; '.join(devices) or 'nothing yet'}.", ""]
    if {"write", "load"} <= parts.keys():
        lines += loading(parts["write"], parts["load"])
    timed = [parts[name] for name in ("step", "step_recompute", "step_compiled") if name in parts]
    if timed:
        lines += steps(timed)
    for name in ("train_step", "train_step_fused"):
        lines += loop(parts[name]) if name in parts else []
    for name in ("precompute", "precompute_gemma2"):
        lines += precompute(parts[name]) if name in parts else []
    if "decode" in parts:
        encode_s = parts["ltx2"]["rows"][-1]["encode"]["s"] if "ltx2" in parts else None
        lines += decoding(parts["decode"], encode_s)
    if "export" in parts:
        lines += exports(parts["export"])
    for name, part in parts.items():
        if "autoencoder" in part:
            lines += ways(name, part)
    write_json(out / "results.json", parts)
    with publish_file(out / "results.md") as scratch:
        scratch.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
