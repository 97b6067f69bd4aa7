"""A record whose answers are known: recovery is linear in log step up to a chosen S90."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from sana_train.evaluation.convergence.levels import Levels, save_arrays

GRID = [0, 10, 20, 50, 100, 200, 350, 500, 750, 1000, 1500, 2000, 3000, 5000, 7500, 10000]
NUM_CLIPS = 48
# metric: (zero level, native reference)
GAPS = {
    "samples/semantic": (0.25, 0.95),
    "samples/colour": (0.15, 0.97),
    "samples/palette_delta_e": (30.0, 4.0),
    "samples/texture": (0.2, 0.9),
    "samples/spectrum_gap": (2.5, 0.4),
    "heldout/loss_high": (0.9, 0.55),
    "heldout/loss_low": (0.8, 0.35),
}
OF_HEADLINE = {
    "samples/semantic": 0,
    "heldout/loss_high": 0,
    "samples/colour": 1,
    "samples/palette_delta_e": 1,
    "samples/texture": 2,
    "samples/spectrum_gap": 2,
    "heldout/loss_low": 2,
}
# S90 of semantic, colour and texture, the same for all seeds
ARMS = {"random": (400, 900, 2400), "scratch": (3000, 3600, math.inf), "linear_probe": (250, 700, 1800)}


def recovery(step: int, s90: float) -> float:
    """0 at step 0, 0.9 at ``s90``, at most 1; an infinite ``s90`` ends at 0.7."""
    slope = 0.7 / math.log1p(GRID[-1]) if math.isinf(s90) else 0.9 / math.log1p(s90)
    return min(1.0, slope * math.log1p(step))


def clip_values(metric: str, closed: float, rng: np.random.Generator) -> np.ndarray:
    zero, reference = GAPS[metric]
    spread = 0.02 * abs(zero - reference)
    return zero + (reference - zero) * closed + spread * rng.normal(size=NUM_CLIPS)


def write_run_dir(folder: Path, s90s: tuple[float, ...], seed: int, grid: list[int] = GRID) -> None:
    """A run directory as training leaves it: metrics.jsonl and clips/step_*.npz."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = []
    for step in grid:
        clips = {
            metric: clip_values(metric, recovery(step, s90s[OF_HEADLINE[metric]]), rng) for metric in GAPS
        }
        save_arrays(folder / "clips" / f"step_{step:06d}.npz", dict(clips))
        means = {metric: float(values.mean()) for metric, values in clips.items()}
        means["heldout/sigma_0.9"] = means["heldout/loss_high"]
        means["heldout/sigma_0.2"] = means["heldout/loss_low"]
        means["heldout/loss"] = (means["heldout/loss_high"] + means["heldout/loss_low"]) / 2
        lines += [{"step": step, "train/loss": 1.0}, {"step": step, **means}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def level_clips(end: int) -> dict[str, np.ndarray]:
    return {metric: np.full(NUM_CLIPS, gap[end], dtype=np.float32) for metric, gap in GAPS.items()}


@pytest.fixture(scope="session")
def record_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms, three seeds each; sweeps of three learning rates for ``random`` and ``scratch``."""
    from sana_train.evaluation.record import add_run

    root = tmp_path_factory.mktemp("record")
    record = root / "ltx_adapt_tiny"
    for arm, s90s in ARMS.items():
        for seed in range(3):
            run = root / "runs" / f"{arm}-s{seed}"
            write_run_dir(run, s90s, seed)
            add_run(record, run, arm=arm, seed=seed, lr=3e-4)
    for arm, s90s in (("random", (900, 400, math.inf)), ("scratch", (9000, 3000, math.inf))):
        for lr, s90 in zip((1e-4, 3e-4, 1e-3), s90s, strict=True):
            run = root / "runs" / f"{arm}-lr{lr:g}"
            write_run_dir(run, (s90, s90, s90), 0, GRID[:12])
            add_run(record, run, arm=arm, seed=0, lr=lr, is_sweep=True)
    Levels(
        zero={name: value for name, value in level_clips(0).items() if name.startswith("heldout/")},
        reference=level_clips(1),
        ceiling={f"samples/{name}": np.full(NUM_CLIPS, 0.98, np.float32) for name in ("semantic", "texture")},
        chance={"samples/semantic": 0.2, "samples/colour": 0.12, "samples/texture": 0.17},
    ).save(record / "levels.npz")
    return record


@pytest.fixture
def write_run():
    return write_run_dir
