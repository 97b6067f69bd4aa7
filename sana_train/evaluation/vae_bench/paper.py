"""A published table of autoencoders as a manifest, and pass or fail against it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from sana_train.evaluation.vae_bench.record import Row, VaeTable

Status = Literal["pass", "FAIL", "not judged"]


@dataclass(frozen=True)
class PaperRow:
    """What is published of one autoencoder.

    Attributes:
        latent: (C, T, H, W).
        memory_gb: shown and not judged: whether allocated or reserved, and with which tiling, is not said.
    """

    label: str
    latent: tuple[int, int, int, int]
    ratio: float
    encode_s: float
    decode_s: float
    memory_gb: float
    psnr_db: float
    ssim: float
    lpips: float


@dataclass(frozen=True)
class Manifest:
    """How a published table is made again, and how near is near enough.

    Attributes:
        source: where the numbers stand.
        crop: how clips come to their size before they are sharded; nothing is resized afterwards.
        dtype: of weights and pixels, as torch names it.
        num_clips: judged on the first so many of the shards.
        metrics: metric -> the code that computes it.
        published_on: the hardware of the latencies.
        devices: names, or parts of them, of devices whose latency may be held against them.
        psnr_tolerance_db: of each PSNR, both ways. Their order has to be the published one exactly.
        latency_factor: the published seconds times this may be taken at most.
        paper: name of an autoencoder's YAML -> its row.
    """

    source: str
    crop: str
    frames: int
    height_px: int
    width_px: int
    dtype: str
    num_clips: int
    metrics: Mapping[str, str]
    published_on: str
    devices: list[str]
    psnr_tolerance_db: float
    latency_factor: float
    paper: Mapping[str, PaperRow]


@dataclass(frozen=True)
class Verdict:
    """One bar. ``measured`` says why where it is not judged."""

    label: str
    bar: str
    published: str
    measured: str
    status: Status


def judge(table: VaeTable, manifest: Manifest) -> list[Verdict]:
    """Latent size, seconds and PSNR of each row that the manifest knows by its YAML, then the order."""
    known = [(row, manifest.paper[row.config]) for row in table.rows if row.config in manifest.paper]
    other_setting = _other_setting(table, manifest)
    verdicts = []
    for row, paper in known:
        verdicts.append(_latent(row, paper, table, manifest))
        no_latency = other_setting or _other_device(table, manifest)
        for bar, seconds in (("encode_s", row.encode_s), ("decode_s", row.decode_s)):
            verdicts.append(_latency(row, bar, seconds, getattr(paper, bar), manifest, no_latency))
        verdicts.append(_psnr(row, paper, manifest, other_setting or _no_quality(row, table, manifest)))
    return verdicts + _order(known, lambda row: other_setting or _no_quality(row, table, manifest))


def _latent(row: Row, paper: PaperRow, table: VaeTable, manifest: Manifest) -> Verdict:
    ours = row.geometry
    published = f"{_by(paper.latent)}, ratio {paper.ratio:g}"
    if _size(manifest) != table.size:
        return Verdict(row.label, "latent", published, f"at {table.size}", "not judged")
    is_same = tuple(paper.latent) == ours.latent and math.isclose(paper.ratio, ours.ratio)
    measured = f"{_by(ours.latent)}, ratio {ours.ratio:g}"
    return Verdict(row.label, "latent", published, measured, "pass" if is_same else "FAIL")


def _latency(
    row: Row, bar: str, seconds: tuple[float, ...], paper_s: float, manifest: Manifest, why_not: str
) -> Verdict:
    name = f"{bar.removesuffix('_s')} <= {manifest.latency_factor:g}x"
    if why_not:
        return Verdict(row.label, name, f"{paper_s:g} s", why_not, "not judged")
    median = statistics.median(seconds)
    is_within = median <= paper_s * manifest.latency_factor
    measured = f"{median:.3g} s, {median / paper_s:.2f}x"
    return Verdict(row.label, name, f"{paper_s:g} s", measured, "pass" if is_within else "FAIL")


def _psnr(row: Row, paper: PaperRow, manifest: Manifest, why_not: str) -> Verdict:
    name, published = f"PSNR +-{manifest.psnr_tolerance_db:g} dB", f"{paper.psnr_db:g} dB"
    if why_not or row.quality is None:
        return Verdict(row.label, name, published, why_not, "not judged")
    psnr_db = row.quality["psnr_db"]
    is_within = abs(psnr_db - paper.psnr_db) <= manifest.psnr_tolerance_db
    measured = f"{psnr_db:.2f} dB, {psnr_db - paper.psnr_db:+.2f}"
    return Verdict(row.label, name, published, measured, "pass" if is_within else "FAIL")


def _order(known: list[tuple[Row, PaperRow]], why_not: Callable[[Row], str]) -> list[Verdict]:
    """Every pair of rows whose published PSNR differs; one verdict, none without such a pair."""
    judged = [(row.quality["psnr_db"], paper) for row, paper in known if row.quality and not why_not(row)]
    pairs = [(a, b) for a, b in combinations(judged, 2) if a[1].psnr_db != b[1].psnr_db]
    if not pairs:
        return []
    is_same = all((a[0] > b[0]) == (a[1].psnr_db > b[1].psnr_db) for a, b in pairs)
    published, measured = (
        " > ".join(paper.label for _, paper in sorted(judged, key=key, reverse=True))
        for key in (lambda pair: pair[1].psnr_db, lambda pair: pair[0])
    )
    return [Verdict("all", "PSNR order", published, measured, "pass" if is_same else "FAIL")]


def _other_setting(table: VaeTable, manifest: Manifest) -> str:
    if table.size != _size(manifest):
        return f"at {table.size}"
    return "" if table.dtype == manifest.dtype else f"in {table.dtype}"


def _other_device(table: VaeTable, manifest: Manifest) -> str:
    device = str(table.environment["device"])
    return "" if any(name in device for name in manifest.devices) else f"not on {manifest.published_on}"


def _no_quality(row: Row, table: VaeTable, manifest: Manifest) -> str:
    if row.quality is None:
        return "random weights"
    if table.clips != "shards":
        return "procedural clips"
    num_clips = int(row.quality["num_clips"])
    return "" if num_clips >= manifest.num_clips else f"{num_clips} of {manifest.num_clips} clips"


def _size(manifest: Manifest) -> str:
    return f"{manifest.height_px}x{manifest.width_px}x{manifest.frames}"


def _by(latent: tuple[int, ...]) -> str:
    return "x".join(map(str, latent))
