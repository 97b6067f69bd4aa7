"""The gate of the tiny world: is it hard enough that adapting is not relearning?

A transfer result means something only where learning from nothing is slow. The gate compares medians
over the same seeds, each arm at the tuned learning rate of its own sweep, on a grid to 10,000 steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sana_train.evaluation.convergence.s90 import S90
from sana_train.evaluation.record import Record
from sana_train.evaluation.record_tables import is_tuned, judged, markdown_table

SCRATCH_RATIO = 4.0
TEXTURE_RATIO = 3.0
MIN_SEEDS = 3
LAST_STEP = 10_000
_ARMS = ("random", "scratch")


@dataclass(frozen=True)
class Ratio:
    """A ratio of median S90s; a lower bound where the numerator was not reached, NaN without a gap."""

    value: float
    is_lower_bound: bool
    wanted: float

    @property
    def passed(self) -> bool:
        return self.value >= self.wanted

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "no gap"
        return f"{'>= ' if self.is_lower_bound else ''}{self.value:.1f}x"


@dataclass(frozen=True)
class Condition:
    """One line of the gate: what is compared, what is wanted of it, what was measured."""

    name: str
    wanted: str
    measured: str
    passed: bool


@dataclass(frozen=True)
class Gate:
    """The two ratios, and what must hold for them to mean something.

    Attributes:
        scratch: S90-semantic of ``scratch`` over that of ``random``.
        texture: S90-texture over S90-semantic of ``random``.
        conditions: all that must pass, the ratios first.
    """

    scratch: Ratio
    texture: Ratio
    conditions: tuple[Condition, ...]

    @property
    def passed(self) -> bool:
        return not self.unmet

    @property
    def unmet(self) -> list[str]:
        """Names of the conditions that do not pass."""
        return [condition.name for condition in self.conditions if not condition.passed]


def gate(record: Record) -> Gate:
    """The gate of a record with samples of both arms.

    A median not reached counts as the last step that both arms were evaluated at. Where an arm has full runs
    at several rates, those at its sweep's choice are judged.
    """
    record = judged(record)
    semantic, texture = record.s90("random", "semantic"), record.s90("random", "texture")
    last_step = min(run.steps[-1] for arm in _ARMS for run in record.select(arm))
    scratch = _ratio(record.s90("scratch", "semantic"), semantic, last_step, SCRATCH_RATIO)
    ratio = _ratio(texture, semantic, last_step, TEXTURE_RATIO)
    conditions = (
        _compared("scratch / random, S90-semantic", scratch),
        _compared("random, texture / semantic", ratio),
        _reached("random reaches S90-semantic", semantic),
        _reached("random reaches S90-texture", texture),
        _same_seeds(record),
        Condition("last step of both", f">= {LAST_STEP:,}", f"{last_step:,}", last_step >= LAST_STEP),
        _tuned(record),
        _kept(record),
    )
    return Gate(scratch, ratio, conditions)


def gate_table(record: Record) -> str:
    rows = [[c.name, c.wanted, c.measured, "yes" if c.passed else "no"] for c in gate(record).conditions]
    return markdown_table([["gate", "wanted", "measured", "passed"], *rows])


def has_gate(record: Record) -> bool:
    """Whether the record holds what the gate is read off."""
    has_samples = record.has_samples and record.is_judged("semantic") and record.is_judged("texture")
    return has_samples and set(_ARMS) <= set(record.arms)


def _ratio(slow: S90, fast: S90, last_step: int, wanted: float) -> Ratio:
    if not (slow.has_gap and fast.has_gap):
        return Ratio(math.nan, False, wanted)
    below = max(1.0, min(fast.median, last_step))  # S90 may be 0
    return Ratio(min(slow.median, last_step) / below, slow.median > last_step, wanted)


def _compared(name: str, ratio: Ratio) -> Condition:
    return Condition(name, f">= {ratio.wanted:g}x", str(ratio), ratio.passed)


def _reached(name: str, result: S90) -> Condition:
    num_reached = sum(math.isfinite(value) for value in result.per_seed)
    measured = f"{num_reached} of {len(result.per_seed)}" if result.has_gap else "no gap"
    return Condition(name, "every seed", measured, num_reached == len(result.per_seed))


def _same_seeds(record: Record) -> Condition:
    """Both arms on the same seeds, each once, and enough of them."""
    seeds = [[run.seed for run in record.select(arm)] for arm in _ARMS]
    texts = [" ".join(map(str, each)) for each in seeds]
    measured = texts[0] if texts[0] == texts[1] else f"{texts[0]} and {texts[1]}"
    passed = seeds[0] == seeds[1] and len(set(seeds[0])) == len(seeds[0]) >= MIN_SEEDS
    return Condition("same seeds of both", f">= {MIN_SEEDS}", measured, passed)


def _kept(record: Record) -> Condition:
    """A control whose training breaks off is no slow learner."""
    runs = record.select("scratch")
    has_kept = not record.broken_rates("scratch") & {run.lr for run in runs}
    return Condition("scratch keeps what it learnt", "every seed", "yes" if has_kept else "no", has_kept)


def _tuned(record: Record) -> Condition:
    tuned = [arm for arm in _ARMS if is_tuned(record, arm)]
    measured = " and ".join(tuned) or "neither"
    return Condition(
        "learning rate inside its sweep", " and ".join(_ARMS), measured, len(tuned) == len(_ARMS)
    )
