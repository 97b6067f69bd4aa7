"""The benchmark as a picture: seconds per direction, and what they buy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sana_train.evaluation.figure_style import INK, MUTED, arm_colour, new_figure
from sana_train.evaluation.vae_bench.paper import Manifest
from sana_train.evaluation.vae_bench.record import Row, VaeTable, median_and_range

_HEIGHT = 0.36  # of a bar; two of them share a row
_PALE = 0.45


def table_figure(path: Path, table: VaeTable, manifest: Manifest | None) -> None:
    """Left: seconds with their range. Right: PSNR against decoding seconds, or without quality the ratio.

    The paper's points are hollow; they are drawn where the size of the clips is the paper's.
    """
    rows = table.rows
    has_quality = any(row.quality is not None for row in rows)
    shown = manifest if manifest is not None and _is_size_of(table, manifest) else None
    with new_figure(10.0, 1.9 + 0.55 * max(3, len(rows)), path) as figure:
        left, right = figure.subplots(1, 2)
        handles = _draw_seconds(left, rows, shown)
        if has_quality:
            _draw_quality(right, rows, shown)
        else:
            _draw_ratios(right, rows)
        device = table.environment["device"]
        figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))
        figure.suptitle(f"{table.size}, {table.dtype}, {device}", fontsize=10, x=0.01, ha="left")


def _paler(colour: str, strength: float) -> tuple[float, float, float]:
    """Mixed with white rather than seen through: a grid line behind a bar is no edge."""
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _is_size_of(table: VaeTable, manifest: Manifest) -> bool:
    return table.size == f"{manifest.height_px}x{manifest.width_px}x{manifest.frames}"


def _draw_seconds(axes: Axes, rows: Sequence[Row], manifest: Manifest | None) -> list[Patch | Line2D]:
    """Returns what its legend shows, which would lie over a bar inside the panel."""
    labels = [row.label for row in rows]
    for position, row in enumerate(rows):
        for offset, name, strength in ((-_HEIGHT / 2, "encode_s", _PALE), (_HEIGHT / 2, "decode_s", 1.0)):
            median, least, most = median_and_range(getattr(row, name))
            axes.barh(
                position + offset,
                median,
                _HEIGHT * 0.94,
                color=_paler(arm_colour(row.label, labels), strength),
                xerr=[[median - least], [most - median]],
                error_kw={"ecolor": INK, "elinewidth": 1.0, "capsize": 2.5},
            )
            if manifest is not None and row.config in manifest.paper:
                published_s = getattr(manifest.paper[row.config], name)
                axes.plot(published_s, position + offset, "D", markersize=5, color=INK, fillstyle="none")
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds per clip: median, range")
    axes.set_title("Latency")
    handles: list[Patch | Line2D] = [
        Patch(color=_paler(MUTED, _PALE), label="encode"),
        Patch(color=MUTED, label="decode"),
    ]
    if manifest is not None:
        handles.append(
            Line2D(
                [],
                [],
                marker="D",
                linestyle="",
                color=INK,
                fillstyle="none",
                label=f"published, {manifest.published_on}",
            )
        )
    return handles


def _draw_quality(axes: Axes, rows: Sequence[Row], manifest: Manifest | None) -> None:
    labels = [row.label for row in rows]
    for row in rows:
        if row.quality is None:
            continue
        median, least, most = median_and_range(row.decode_s)
        colour, psnr_db = arm_colour(row.label, labels), row.quality["psnr_db"]
        axes.errorbar(
            median, psnr_db, xerr=[[median - least], [most - median]], fmt="o", color=colour, capsize=2.5
        )
        axes.annotate(
            f"{row.label}, ratio {row.geometry.ratio:g}",
            (median, psnr_db),
            xytext=(0, 8),
            textcoords="offset points",
            ha="left",
            fontsize=9,
        )
        if manifest is not None and row.config in manifest.paper:
            paper = manifest.paper[row.config]
            axes.plot(paper.decode_s, paper.psnr_db, "D", markersize=5, color=colour, fillstyle="none")
    axes.margins(x=0.45, y=0.35)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds to decode a clip")
    axes.set_ylabel("PSNR, dB")
    axes.set_title("Reconstruction against decoding time")


def _draw_ratios(axes: Axes, rows: Sequence[Row]) -> None:
    labels = [row.label for row in rows]
    for position, row in enumerate(rows):
        axes.barh(position, row.geometry.ratio, 0.6, color=arm_colour(row.label, labels))
        ours = row.geometry
        text = f" {ours.ratio:g}; {ours.sites:,} sites, {ours.numbers / 1e6:.3g} M numbers"
        axes.text(0, position + 0.42, text, va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.3, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("numbers of pixels per latent number")
    axes.set_title("Compression")
