"""A record of convergence runs, ``experiments/<name>/``: read it, add a run to it.

    runs.jsonl        one line per run and evaluation: run, arm, seed, lr, sweep, step, metrics
    clips/<run>.npz   the headline metrics per clip, (G, n), and ``steps`` (G,); optional
    levels.npz        zero, reference, ceiling and chance (``Levels``)

Legend: R seeds, G grid steps, n clips.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sana_train.evaluation.convergence.levels import Levels, load_arrays, save_arrays
from sana_train.evaluation.convergence.s90 import (
    HEADLINES,
    HIGHER_IS_BETTER,
    S90,
    SAMPLE_HEADLINES,
    Array,
    Curve,
    recovery_curves,
    s90,
)
from sana_train.utils.files import publish_file

RUNS_FILE = "runs.jsonl"
LEVELS_FILE = "levels.npz"
MAX_FALL = 0.25  # of the semantic gap, from a run's best evaluation to a later one
HEADLINE_METRICS = tuple(name for names in HEADLINES.values() for name in names)


@dataclass
class Run:
    """One run: its evaluations in order of step, and per-clip headline metrics where kept."""

    name: str
    arm: str
    seed: int
    lr: float
    is_sweep: bool
    steps: list[int]
    metrics: list[dict[str, float]]
    clips: dict[str, Array]

    def values(self, metric: str) -> Array | None:
        """(G, n) per clip, (G, 1) where only means are kept, None where not measured."""
        if metric in self.clips:
            return self.clips[metric]
        if not all(metric in row for row in self.metrics):
            return None
        return np.array([[row[metric]] for row in self.metrics])


class Record:
    """Runs of several arms and the levels they are read against.

    Raises:
        ValueError: no runs.
    """

    def __init__(self, runs: list[Run], levels: Levels) -> None:
        if not runs:
            raise ValueError("the record holds no runs")
        self.runs = runs
        self.levels = levels

    @classmethod
    def load(cls, folder: Path) -> Record:
        path = folder / RUNS_FILE
        if not path.is_file():
            raise ValueError(f"{folder} is no record: it has no {RUNS_FILE}")
        rows: dict[str, list[dict[str, Any]]] = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows.setdefault(row["run"], []).append(row)
        runs = []
        for name, lines in rows.items():
            lines.sort(key=lambda row: row["step"])
            clips_path = folder / "clips" / f"{name}.npz"
            clips = load_arrays(clips_path) if clips_path.is_file() else {}
            steps = [row["step"] for row in lines]
            if clips and clips.pop("steps").tolist() != steps:
                raise ValueError(f"{clips_path} holds other steps than {path}; add the run again")
            head = lines[0]
            values = {metric: array.astype(np.float64) for metric, array in clips.items()}
            metrics = [row["metrics"] for row in lines]
            runs.append(
                Run(name, head["arm"], head["seed"], head["lr"], head["sweep"], steps, metrics, values)
            )
        levels = Levels.load(folder / LEVELS_FILE) if (folder / LEVELS_FILE).is_file() else Levels()
        return cls(runs, levels)

    @property
    def arms(self) -> list[str]:
        """Arms with full runs, in the order they were added."""
        return list(dict.fromkeys(run.arm for run in self.runs if not run.is_sweep))

    @property
    def has_samples(self) -> bool:
        return measured_samples([run for run in self.runs if not run.is_sweep])

    @property
    def headlines(self) -> tuple[str, ...]:
        """What the record can be asked for: groups of samples, or loss bands where it has none."""
        return SAMPLE_HEADLINES if self.has_samples else ("loss_high", "loss_low")

    def is_judged(self, headline: str) -> bool:
        """Whether every full run was measured in all of the headline's metrics, and so were both levels."""
        runs = [run for run in self.runs if not run.is_sweep]
        return all(
            metric in self.levels.reference
            and (metric in self._random_start or metric in self.levels.zero)
            and all(run.values(metric) is not None for run in runs)
            for metric in HEADLINES[headline]
        )

    @property
    def last_step(self) -> int:
        return max(run.steps[-1] for run in self.runs if not run.is_sweep)

    def select(self, arm: str) -> list[Run]:
        """The full runs that the arm is judged by, by seed: those at rates where none broke off.

        Where one did at every rate, those at the lowest.
        """
        runs, broken = self._full_runs(arm), self.broken_rates(arm)
        kept = [run for run in runs if run.lr not in broken]
        return kept or [run for run in runs if run.lr == min(broken)]

    def without(self, arm: str, rates: Collection[float]) -> Record:
        """This record without the arm's full runs at ``rates``."""
        runs = [run for run in self.runs if run.is_sweep or run.arm != arm or run.lr not in rates]
        return Record(runs, self.levels)

    def broken_rates(self, arm: str) -> set[float]:
        """Learning rates of an arm at which a full run lost again what it had learnt, by ``MAX_FALL``.

        The sweep cannot see a rate that diverges after its last step.
        """
        if not (self.has_samples and self.is_judged("semantic")):
            return set()
        broken = set()
        for run in self._full_runs(arm):
            _, recovery = self.recovery([run], "semantic")
            if (np.maximum.accumulate(recovery[0]) - recovery[0]).max() > MAX_FALL:
                broken.add(run.lr)
        return broken

    def _full_runs(self, arm: str) -> list[Run]:
        return sorted((run for run in self.runs if run.arm == arm and not run.is_sweep), key=lambda r: r.seed)

    @cached_property
    def _random_start(self) -> dict[str, Array]:
        """Per-clip sample metrics at step 0 of ``random``, the mean over its seeds."""
        runs = self._full_runs("random") or [run for run in self.runs if run.arm == "random"]
        start = {}
        for metric in HEADLINE_METRICS:
            values = [run.values(metric) for run in runs if run.steps[0] == 0]
            known = [value[0] for value in values if value is not None]
            if known and metric.startswith("samples/"):
                start[metric] = np.mean(known, axis=0)
        return start

    def curves(self, runs: Sequence[Run], headline: str) -> tuple[list[int], list[Curve]]:
        """(steps, one curve per metric of the headline) of runs that share a grid."""
        steps = runs[0].steps
        for run in runs:
            if run.steps != steps:
                raise ValueError(f"{run.name} was evaluated at {run.steps}, {runs[0].name} at {steps}")
        curves = []
        for metric in HEADLINES[headline]:
            values = [run.values(metric) for run in runs]
            zero = self._random_start.get(metric, self.levels.zero.get(metric))
            reference = self.levels.reference.get(metric)
            known = [value for value in values if value is not None]
            if len(known) < len(runs) or zero is None or reference is None:
                raise ValueError(f"{headline} of {runs[0].arm} lacks values, a zero level or a reference")
            curves.append(_same_clips(metric, known, zero.astype(np.float64), reference.astype(np.float64)))
        return steps, curves

    def recovery(self, runs: Sequence[Run], headline: str) -> tuple[list[int], Array]:
        """(steps, (R, G) fraction of the gap closed)."""
        steps, curves = self.curves(runs, headline)
        return steps, recovery_curves(curves)[0]

    def s90(self, arm: str, headline: str, num_draws: int = 1000) -> S90:
        return s90(*self.curves(self.select(arm), headline), num_draws=num_draws)


def measured_samples(runs: Sequence[Run]) -> bool:
    """Whether every evaluation of every run sampled; otherwise only loss bands can be judged."""
    return all("samples/semantic" in row for run in runs for row in run.metrics)


def _same_clips(metric: str, values: list[Array], zero: Array, reference: Array) -> Curve:
    """A curve over the clips that runs and levels share: all, or means where one of them is a mean."""
    arrays = [*values, zero, reference]
    num_clips = min(array.shape[-1] for array in arrays)
    if num_clips == 1:
        arrays = [np.nanmean(array, axis=-1, keepdims=True) for array in arrays]
    cut = [array[..., :num_clips] for array in arrays]
    return Curve(np.stack(cut[:-2]), cut[-2], cut[-1], metric in HIGHER_IS_BETTER)


def add_run(folder: Path, run_dir: Path, *, arm: str, seed: int, lr: float, is_sweep: bool = False) -> None:
    """Copy a finished run's evaluations into a record; a run of that name there is replaced.

    Args:
        run_dir: holds ``metrics.jsonl`` and, for intervals over clips, ``clips/step_*.npz``.
    """
    name = run_dir.name
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluations = {line["step"]: line for line in lines if "heldout/loss" in line}
    if not evaluations:
        raise ValueError(f"{run_dir}/metrics.jsonl holds no evaluation (a line with heldout/loss)")
    notes = {"run": name, "arm": arm, "seed": seed, "lr": lr, "sweep": is_sweep}
    rows = []
    for step, line in sorted(evaluations.items()):
        metrics = {
            key: value for key, value in line.items() if key.startswith(("heldout/", "clean/", "samples/"))
        }
        rows.append(json.dumps({**notes, "step": step, "metrics": metrics}))
    runs_path = folder / RUNS_FILE
    kept = []
    if runs_path.is_file():
        kept = [line for line in runs_path.read_text().splitlines() if json.loads(line)["run"] != name]
    with publish_file(runs_path) as scratch:
        scratch.write_text("\n".join([*kept, *rows]) + "\n")
    paths = [run_dir / "clips" / f"step_{step:06d}.npz" for step in sorted(evaluations)]
    if all(path.is_file() for path in paths):
        arrays = [load_arrays(path) for path in paths]
        stacked = {
            metric: np.stack([array[metric] for array in arrays])
            for metric in HEADLINE_METRICS
            if metric in arrays[0]
        }
        save_arrays(folder / "clips" / f"{name}.npz", {**stacked, "steps": np.array(sorted(evaluations))})
    else:  # those of an earlier run of that name
        (folder / "clips" / f"{name}.npz").unlink(missing_ok=True)
