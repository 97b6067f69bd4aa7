"""What the benchmark of autoencoders keeps: one row each, and how they were measured.

Legend: C channels, T/H/W latent grid.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sana_train.types import LatentSpec, VideoShape

TABLE_FILE, REPORT_FILE, FIGURE_FILE = "table.json", "table.md", "figure.png"
RANDOM_WEIGHTS = "random"
_RGB = 3


@dataclass(frozen=True)
class Geometry:
    """The latents of one clip.

    Attributes:
        latent: (C, T, H, W).
        ratio: numbers of a block of pixels over numbers of the latent site that stands for it. That of a
            whole clip is a little less: a causal first frame has a latent of its own, and a tail is padded.
    """

    latent: tuple[int, int, int, int]
    ratio: float

    @classmethod
    def of(cls, spec: LatentSpec, video: VideoShape) -> Geometry:
        """Raises ``ValueError`` where the clip does not fit the strides."""
        block = _RGB * spec.stride_t * spec.stride_h * spec.stride_w
        return cls(spec.latent_shape(video), block / spec.channels)

    @property
    def sites(self) -> int:
        return math.prod(self.latent[1:])

    @property
    def numbers(self) -> int:
        return math.prod(self.latent)


@dataclass(frozen=True)
class PeakMemory:
    """The most memory while one autoencoder had the device to itself: weights, clip and activations.

    Attributes:
        allocated_gib: in tensors.
        reserved_gib: taken from the device by torch's allocator, which is what must fit.
    """

    allocated_gib: float
    reserved_gib: float


@dataclass(frozen=True)
class Row:
    """One autoencoder.

    Attributes:
        label: its name in tables.
        config: the name of its YAML, by which the paper's numbers are found.
        overrides: what was set beside the YAML, ``key=value``.
        weights: fingerprint, or ``random``.
        num_parameters: of encoder and decoder.
        geometry: of the clip all rows were measured on.
        encode_s: seconds of each timed pass.
        decode_s: the same.
        encode_peak: None on a CPU.
        decode_peak: None on a CPU.
        quality: means over the clips, as ``evaluate_reconstruction`` names them; None where not judged.
    """

    label: str
    config: str
    overrides: tuple[str, ...]
    weights: str
    num_parameters: int
    geometry: Geometry
    encode_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    encode_peak: PeakMemory | None = None
    decode_peak: PeakMemory | None = None
    quality: dict[str, float] | None = None

    @property
    def peak(self) -> PeakMemory | None:
        """The larger of both directions."""
        if self.encode_peak is None or self.decode_peak is None:
            return None
        both = (self.encode_peak, self.decode_peak)
        return PeakMemory(max(p.allocated_gib for p in both), max(p.reserved_gib for p in both))


@dataclass(frozen=True)
class VaeTable:
    """All rows, measured in the same way on the same device.

    Attributes:
        video: size of every clip.
        dtype: of weights and pixels, as torch names it.
        rounds: timed passes per row and direction.
        seed: of the random clips that are timed.
        clips: what reconstruction was judged on: ``world`` or ``shards``, None for nothing.
        num_clips: how many of them at most.
        clips_fingerprint: which.
        environment: hardware, versions, commit, load.
    """

    rows: tuple[Row, ...]
    video: VideoShape
    dtype: str
    rounds: int
    seed: int
    clips: str | None
    num_clips: int
    clips_fingerprint: str
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """Height x width x frames, in the paper's order."""
        return f"{self.video.height_px}x{self.video.width_px}x{self.video.frames}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def load(cls, folder: Path) -> VaeTable:
        """The table in ``folder``.

        Raises:
            ValueError: there is none.
        """
        path = folder / TABLE_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no {TABLE_FILE}; make it with python -m sana_train.cli.vae_table"
            )
        plain = json.loads(path.read_text())["table"]
        rows = tuple(_row(row) for row in plain.pop("rows"))
        return cls(rows=rows, video=VideoShape(**plain.pop("video")), **plain)


def _row(plain: dict[str, Any]) -> Row:
    geometry = plain.pop("geometry")
    peaks = {name: plain.pop(name) for name in ("encode_peak", "decode_peak")}
    tuples = {name: tuple(plain.pop(name)) for name in ("overrides", "encode_s", "decode_s")}
    return Row(
        geometry=Geometry(tuple(geometry["latent"]), geometry["ratio"]),
        **{name: None if peak is None else PeakMemory(**peak) for name, peak in peaks.items()},
        **tuples,
        **plain,
    )


def median_and_range(seconds: Sequence[float]) -> tuple[float, float, float]:
    """(median, least, most)."""
    return statistics.median(seconds), min(seconds), max(seconds)
