"""The benchmark for people: ``table.md``, at most 100 columns wide, and ``figure.png``."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sana_train.evaluation.record_tables import markdown_table
from sana_train.evaluation.vae_bench.paper import Manifest, Verdict
from sana_train.evaluation.vae_bench.record import (
    FIGURE_FILE,
    RANDOM_WEIGHTS,
    REPORT_FILE,
    TABLE_FILE,
    Row,
    VaeTable,
    median_and_range,
)
from sana_train.utils.files import publish_directory, write_json

NO_TRUNK = "no trunk weights"
_COLUMNS = 100
_MEMORY_ON_GPU = "Peak memory in GiB, with the device to itself."
_MEMORY_ON_CPU = "Memory: measured on GPUs only."
_FILES = {TABLE_FILE, REPORT_FILE, FIGURE_FILE}


def require_own_folder(out: Path) -> None:
    """Raises ``ValueError`` where publishing a table would replace files that are not a table's."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder for the table")
    others = sorted({path.name for path in out.iterdir()} - _FILES) if out.is_dir() else []
    if others:
        raise ValueError(
            f"{out} holds other files ({', '.join(others[:3])}); name a folder for the table alone"
        )


def write_table(
    out: Path,
    table: VaeTable,
    verdicts: Sequence[Verdict],
    manifest: Manifest | None,
    metrics: Mapping[str, str],
) -> None:
    """All three files, or none.

    Args:
        metrics: metric -> the code that computed it.
    """
    from sana_train.evaluation.vae_bench.figure import table_figure  # imports matplotlib

    require_own_folder(out)
    plain: dict[str, Any] = {
        "table": table.to_dict(),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "metrics": dict(metrics),
        "manifest": None if manifest is None else asdict(manifest),
    }
    with publish_directory(out) as scratch:
        write_json(scratch / TABLE_FILE, plain)
        (scratch / REPORT_FILE).write_text(report(table, verdicts, manifest) + "\n")
        table_figure(scratch / FIGURE_FILE, table, manifest)


def report(table: VaeTable, verdicts: Sequence[Verdict], manifest: Manifest | None) -> str:
    """The whole of ``table.md``."""
    has_memory = any(row.peak is not None for row in table.rows)
    parts = [
        f"# Autoencoders at {table.size}",
        _section("Latents", geometry_table(table.rows)),
        _section("Seconds per clip" + (" and memory" if has_memory else ""), speed_table(table.rows)),
        _wrap(
            f"Median [least, most] of {table.rounds} passes over random clips, in turns, each behind an "
            f"untimed pass. {_MEMORY_ON_GPU if has_memory else _MEMORY_ON_CPU}"
        ),
        _section("Reconstruction", quality_table(table)),
        _wrap(_clips_line(table)),
    ]
    if manifest is not None:
        parts += [
            _section(f"Against {manifest.source}", verdict_table(verdicts)),
            _wrap(_bars_line(manifest)),
        ]
    parts.append(_section("How", "\n".join(_wrap(f"- {line}", "  ") for line in _facts(table))))
    return "\n\n".join(parts)


def geometry_table(rows: Sequence[Row]) -> str:
    head = ["autoencoder", "latent C x T x H x W", "sites", "numbers", "ratio", "parameters"]
    return _table(
        head,
        rows,
        lambda row: [
            " x ".join(map(str, row.geometry.latent)),
            f"{row.geometry.sites:,}",
            f"{row.geometry.numbers:,}",
            f"{row.geometry.ratio:g}",
            f"{row.num_parameters / 1e6:,.1f} M",
        ],
    )


def speed_table(rows: Sequence[Row]) -> str:
    head = ["autoencoder", "encode, s", "decode, s"]
    if all(row.peak is None for row in rows):
        return _table(head, rows, lambda row: [_seconds(row.encode_s), _seconds(row.decode_s)])

    def cells(row: Row) -> list[str]:
        assert row.peak is not None
        memory = [f"{row.peak.allocated_gib:.1f}", f"{row.peak.reserved_gib:.1f}"]
        return [_seconds(row.encode_s), _seconds(row.decode_s), *memory]

    return _table([*head, "allocated", "reserved"], rows, cells)


def quality_table(table: VaeTable) -> str:
    def cells(row: Row) -> list[str]:
        if row.quality is None:
            return ["random weights", "-", "-"]
        lpips = row.quality.get("lpips")
        return [
            f"{row.quality['psnr_db']:.2f}",
            f"{row.quality['ssim']:.3f}",
            NO_TRUNK if lpips is None else f"{lpips:.3f}",
        ]

    return _table(["autoencoder", "PSNR, dB", "SSIM", "LPIPS"], table.rows, cells)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "No row of this table is in the manifest."
    rows = [[v.label, v.bar, v.published, v.measured, v.status] for v in verdicts]
    return markdown_table([["autoencoder", "bar", "published", "measured", "verdict"], *rows])


def _table(head: Sequence[str], rows: Sequence[Row], cells: Callable[[Row], list[str]]) -> str:
    return markdown_table([head, *([row.label, *cells(row)] for row in rows)])


def _seconds(seconds: Sequence[float]) -> str:
    median, least, most = (f"{value:.3g}" for value in median_and_range(seconds))
    return f"{median} [{least}, {most}]"


def _clips_line(table: VaeTable) -> str:
    if table.clips is None:
        return "Left out: random weights reconstruct nothing."
    kind = "held-out clips of the procedural world" if table.clips == "world" else "clips of the given shards"
    judged = [int(row.quality["num_clips"]) for row in table.rows if row.quality is not None]
    return (
        f"Means over {max(judged)} {kind} (fingerprint {table.clips_fingerprint}), each autoencoder on the "
        "frames it gives back."
    )


def _bars_line(manifest: Manifest) -> str:
    memory = ", ".join(f"{row.label} {row.memory_gb:g}" for row in manifest.paper.values())
    lpips = ", ".join(f"{row.label} {row.ssim:g} / {row.lpips:g}" for row in manifest.paper.values())
    return (
        f"Published on {manifest.published_on}; not judged: memory in GB ({memory}) and SSIM / LPIPS "
        f"({lpips}). Clips: {manifest.crop}."
    )


def _facts(table: VaeTable) -> list[str]:
    facts = [f"weights and pixels in {table.dtype}; random clips of seed {table.seed}"]
    facts += [f"{name.replace('_', ' ')}: {_text(value)}" for name, value in table.environment.items()]
    for row in table.rows:
        beside = f" with {' '.join(row.overrides)}" if row.overrides else ""
        weights = "random" if row.weights == RANDOM_WEIGHTS else f"fingerprint {row.weights}"
        facts.append(f"{row.label}: {row.config}{beside}, weights {weights}")
    return facts


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)


def _section(title: str, table: str) -> str:
    return f"## {title}\n\n{table}"


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _COLUMNS, subsequent_indent=indent, break_on_hyphens=False)
