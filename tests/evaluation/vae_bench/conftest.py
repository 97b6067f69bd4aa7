"""Tables that nobody measured, with numbers on either side of a bar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sana_train.cli.vae_table import read_manifest
from sana_train.evaluation.vae_bench.paper import Manifest
from sana_train.evaluation.vae_bench.record import Geometry, PeakMemory, Row, VaeTable
from sana_train.types import VideoShape

MANIFEST = Path(__file__).parents[3] / "data" / "manifests" / "panda70m_vae.yaml"


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    return read_manifest(MANIFEST)


@pytest.fixture(scope="session")
def make_row(manifest: Manifest) -> Callable[..., Row]:
    """A row that reproduces the paper's exactly, but for the given seconds and decibels."""

    def make(config: str, encode_x: float = 1.0, decode_x: float = 1.0, extra_db: float | None = 0.0) -> Row:
        paper = manifest.paper[config]
        return Row(
            label=config,
            config=config,
            overrides=(),
            weights="random" if extra_db is None else "0123456789abcdef",
            num_parameters=2_140_400_000,
            geometry=Geometry(paper.latent, paper.ratio),
            encode_s=tuple(paper.encode_s * encode_x * near for near in (0.9, 1.0, 9.0)),
            decode_s=tuple(paper.decode_s * decode_x * near for near in (0.9, 1.0, 9.0)),
            encode_peak=PeakMemory(40.0, 45.5),
            decode_peak=PeakMemory(43.8, 44.0),
            quality=None
            if extra_db is None
            else {"psnr_db": paper.psnr_db + extra_db, "ssim": 0.95, "num_clips": 100.0},
        )

    return make


@pytest.fixture(scope="session")
def make_table() -> Callable[..., VaeTable]:
    def make(*rows: Row, **changes: object) -> VaeTable:
        values: dict = {
            "video": VideoShape(81, 704, 1280),
            "dtype": "bfloat16",
            "rounds": 3,
            "seed": 0,
            "clips": "shards",
            "num_clips": 100,
            "clips_fingerprint": "feedfacefeedface",
            "environment": {"device": "NVIDIA H100 80GB HBM3", "torch": "2.13.0"},
        }
        return VaeTable(rows=rows, **{**values, **changes})

    return make
