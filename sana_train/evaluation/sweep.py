"""Runs of a sweep side by side: what differs in their configurations, how far each came, medians over seeds.

An arm is a configuration but for its seed. Numbers are as the runs logged them: nothing is measured here.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sana_train.evaluation.convergence.s90 import HEADLINES, steps_to_recovery

SEED = "training.seed"
Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SweepRun:
    """One run.

    Attributes:
        config: what decides its result, by dotted key, the seed included.
        lines: of its ``metrics.jsonl``.
        status: ``finished``, ``going`` (or killed: a process that is killed cannot tell) or ``failed``.
        note: why it failed, or since when nothing was heard of it.
    """

    name: str
    config: Mapping[str, Any]
    lines: Lines
    status: str
    note: str = ""

    @property
    def seed(self) -> Any:
        return self.config.get(SEED)

    @property
    def step(self) -> int:
        """The last one logged; 0 before any is."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def state(self) -> str:
        """E.g. ``finished at 500``, ``at step 120``, ``failed at 60``."""
        return f"at step {self.step}" if self.status == "going" else f"{self.status} at {self.step}"

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one logged key."""
        points = {line["step"]: line[key] for line in self.lines if line.get(key) is not None}
        steps = sorted(points)
        return steps, [points[step] for step in steps]

    @cached_property
    def measures(self) -> dict[str, float]:
        """Last losses and recoveries, S90 by headline (infinity: not reached), median speed, if logged."""
        found: dict[str, float] = {}
        for key in ("train/loss", "heldout/loss", *(f"recovery/{headline}" for headline in HEADLINES)):
            steps, values = self.series(key)
            if values:
                found[key] = values[-1]
            if values and key.startswith("recovery/"):
                found[f"s90/{key.removeprefix('recovery/')}"] = steps_to_recovery(steps, values)
        _, speeds = self.series("speed/tokens_per_s")
        if speeds:
            found["speed/tokens_per_s"] = statistics.median(speeds)
        return found


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but the seed; ``values`` are of the keys in which arms differ."""

    values: tuple[Any, ...]
    runs: tuple[SweepRun, ...]

    @property
    def finished(self) -> list[SweepRun]:
        return [run for run in self.runs if run.status == "finished"]

    def spread(self, measure: str) -> tuple[float, float, float] | None:
        """(median, least, most) over the finished runs, or over all while none is; None if none has it.

        The median of an even number of runs is the mean of the middle two.
        """
        runs = self.finished or self.runs
        found = [value for run in runs if (value := run.measures.get(measure)) is not None]
        return (statistics.median(found), min(found), max(found)) if found else None


@dataclass(frozen=True)
class Sweep:
    """Arms in order of their values, and the keys in which they differ."""

    keys: tuple[str, ...]
    arms: tuple[Arm, ...]

    @classmethod
    def of(cls, runs: Sequence[SweepRun]) -> Sweep:
        keys = differing_keys([run.config for run in runs])
        groups: dict[str, list[SweepRun]] = {}
        for run in runs:
            values = [run.config.get(key) for key in keys]
            groups.setdefault(json.dumps(values, sort_keys=True), []).append(run)
        arms = [
            Arm(
                tuple(members[0].config.get(key) for key in keys),
                tuple(sorted(members, key=lambda run: (str(run.seed).rjust(9), run.name))),
            )
            for members in groups.values()
        ]
        return cls(keys, tuple(sorted(arms, key=lambda arm: [_sortable(value) for value in arm.values])))

    @property
    def runs(self) -> list[SweepRun]:
        """By arm, then by seed."""
        return [run for arm in self.arms for run in arm.runs]

    @property
    def measures(self) -> list[str]:
        """Those that any run has, in the order of ``SweepRun.measures``."""
        order = ["train/loss", "heldout/loss"]
        order += [f"{kind}/{headline}" for headline in HEADLINES for kind in ("recovery", "s90")]
        found = {name for run in self.runs for name in run.measures}
        return [name for name in [*order, "speed/tokens_per_s"] if name in found]


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Keys, but for the seed, that not all configurations share with the same value."""
    keys = sorted({key for config in configs for key in config} - {SEED})
    return tuple(key for key in keys if len({_comparable(config, key) for config in configs}) > 1)


def _comparable(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key], sort_keys=True) if key in config else "not set"


def _sortable(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, before everything else by its text."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (not is_number, float(value) if is_number else 0.0, str(value))
