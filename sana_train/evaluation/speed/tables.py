"""Tables of measured steps: Markdown of at most 100 columns, from the rows of ``store.Results``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sana_train.evaluation.record_tables import markdown_table
from sana_train.evaluation.speed.turns import OUT_OF_MEMORY

Row = Mapping[str, Any]


def steps_table(content: Mapping[str, Any], group: str, peer: str | None = None) -> str:
    """ms, ratio to the peer, share of the ceiling, MFU and peak memory of one group; empty without rows.

    Args:
        content: of ``results.json``.
        group: ``train``, ``denoise`` ...
        peer: the way that others are divided by, row for row; None leaves the ratio out.
    """
    rows = [row for row in content["rows"] if row["group"] == group]
    if not rows:
        return ""
    head = ["batch", "recompute", "way", "ms", "range", "of ceiling", "MFU", "GiB"]
    if peer is not None:
        head.insert(5, f"of {peer}")
    table = [head]
    for row in rows:
        cells = [str(row["batch"]), row["recompute"] or "-", row["way"]]
        if row["error"]:
            table.append([*cells, _short(row["error"]), *[""] * (len(head) - 4)])
            continue
        low, high = row["range_ms"]
        cells += [f"{row['ms']:.1f}", f"{low:.0f} to {high:.0f}"]
        if peer is not None:
            cells.append(_ratio(row, rows, peer))
        cells += [_percent(share) for share in (share_of_ceiling(row, content), mfu(row, content))]
        table.append([*cells, _number(row["peak_gib"], 1)])
    return markdown_table(table)


def share_of_ceiling(row: Row, content: Mapping[str, Any]) -> float | None:
    """Of the FLOP/s that a square product reached in the same run; recomputed products do not count."""
    ceilings = content["ceilings"]
    return None if ceilings is None else row["flops"] / row["ms"] * 1e3 / ceilings["matmul_flops"]


def mfu(row: Row, content: Mapping[str, Any]) -> float | None:
    """Of the chip's peak by its data sheet; None where that is not known."""
    peak = content["facts"].get("peak_flops")
    return None if peak is None else row["flops"] / row["ms"] * 1e3 / peak


def optimiser_table(content: Mapping[str, Any]) -> str:
    """What each optimiser keeps, and what its step alone takes; empty if none was measured."""
    rows = [row for row in content["rows"] if row["group"] == "optimiser"]
    if not rows:
        return ""
    table = [["optimiser", "state GiB", "bytes a parameter", "step ms", "range"]]
    num_parameters = content["facts"]["num_parameters"]
    for row in rows:
        if row["error"]:
            table.append([row["optimiser"], "", "", _short(row["error"]), ""])
            continue
        low, high = row["range_ms"]
        per_parameter = row["state_bytes"] / num_parameters
        cells = [row["optimiser"], f"{row['state_bytes'] / 2**30:.2f}", f"{per_parameter:.2f}"]
        table.append([*cells, f"{row['ms']:.1f}", f"{low:.1f} to {high:.1f}"])
    return markdown_table(table)


def outputs_table(content: Mapping[str, Any]) -> str:
    """How far outputs on the same weights are from the peer's in float32; empty if they were not compared."""
    rows = [row for row in content["rows"] if row["group"] == "outputs"]
    lines = [[row["dtype"], row["way"], f"{row['distance']:.1e}"] for row in rows]
    return markdown_table([["products in", "way", "distance from float32"], *lines]) if rows else ""


def frames_table(content: Mapping[str, Any]) -> str:
    """Cost of one evaluation against the length of the clip; empty if it was not measured."""
    rows = [row for row in content["rows"] if row["group"] == "frames"]
    if not rows:
        return ""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    table = [["frames", "tokens", *(f"{way} ms" for way in ways)]]
    for frames in dict.fromkeys(row["frames"] for row in rows):
        of = {row["way"]: row for row in rows if row["frames"] == frames}
        tokens = next(iter(of.values()))["num_tokens"]
        cells = [_short(of[w]["error"]) if of[w]["error"] else f"{of[w]['ms']:.2f}" for w in ways]
        table.append([str(frames), f"{tokens:,}", *cells])
    return markdown_table(table)


def breakdown_table(content: Mapping[str, Any]) -> str:
    """Milliseconds of a training step's kernels by kind; empty if none was taken apart."""
    rows = [row for row in content["rows"] if row["group"] == "breakdown" and "breakdown" in row]
    if not rows:
        return ""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["breakdown"]["by_kind_ms"]))
    table = [["kernels", *(row["way"] for row in rows)]]
    for kind in kinds:
        table.append([kind, *(f"{row['breakdown']['by_kind_ms'].get(kind, 0.0):.1f}" for row in rows)])
    table.append(["all kernels", *(f"{row['breakdown']['kernels_ms']:.1f}" for row in rows)])
    table.append(["the step, not profiled", *(f"{row['ms']:.1f}" for row in rows)])
    return markdown_table(table)


def longest_kernels(content: Mapping[str, Any], way: str, num_kernels: int = 12) -> str:
    """The longest kernels of that way's training step; empty if it was not taken apart."""
    for row in content["rows"]:
        if row["group"] == "breakdown" and row["way"] == way and "breakdown" in row:
            found = row["breakdown"]["longest"][:num_kernels]
            lines = [[_kernel_name(one["name"]), str(one["calls"]), f"{one['ms']:.1f}"] for one in found]
            return markdown_table([[f"longest kernels, {way}", "calls", "ms"], *lines])
    return ""


def headline(content: Mapping[str, Any]) -> str:
    """Where, on what, and what the device reached on its own."""
    facts, ceilings = content["facts"], content["ceilings"]
    size = " x ".join(map(str, facts["latent_shape"]))
    lines = [
        f"{facts['device']}, torch {facts['torch']}, commit {facts['commit']}.",
        f"{facts['num_parameters']:,} parameters; clips of {size} latents, {facts['num_tokens']:,} tokens, "
        f"{facts['num_context']} of text.",
    ]
    if ceilings is not None:
        lines.append(
            f"Ceilings in this run: {ceilings['matmul_flops'] / 1e12:,.3g} TFLOP/s "
            f"({ceilings['matmul_size']:.0f} rows, bf16), "
            f"copies {ceilings['copy_bytes_per_s'] / 1e12:.3g} TB/s."
        )
    return "\n".join(lines)


def _ratio(row: Row, rows: Sequence[Row], peer: str) -> str:
    same = ("batch", "recompute")
    found = [r for r in rows if r["way"] == peer and all(r[key] == row[key] for key in same)]
    return "" if not found or found[0]["error"] else f"{row['ms'] / found[0]['ms']:.3f}"


def _kernel_name(name: str) -> str:
    """Without return type and namespaces, and no wider than a table may have it."""
    for repeated in ("void ", "(anonymous namespace)::", "at::native::"):
        name = name.replace(repeated, "")
    return name[:76]


def _short(error: str) -> str:
    return OUT_OF_MEMORY if error.startswith(OUT_OF_MEMORY) else f"failed: {error[:20]}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
