"""The collapse flag: a fine-tuned denoiser that loses again what it had recovered.

Naive fine-tuning after a latent swap has been reported to look plausible and then to fall apart
(DC-VideoGen); the held-out loss at high noise, where content is decided, shows it first.
"""

from __future__ import annotations

import logging
from itertools import pairwise

logger = logging.getLogger(__name__)


class CollapseFlag:
    """Watches the held-out high-noise loss.

    Args:
        num_rises: consecutive evaluations that must each be above the one before.
        min_rise: relative rise over all of them together, below which it counts as jitter.
        max_rise: relative rise above the lowest loss so far that counts at once: a training that diverges
            between two evaluations rises once, steeply, and falls slowly again.
    """

    def __init__(self, num_rises: int = 3, min_rise: float = 0.01, max_rise: float = 1.0) -> None:
        if num_rises < 1:
            raise ValueError(f"num_rises must be at least 1, got {num_rises}")
        self.num_rises = num_rises
        self.min_rise = min_rise
        self.max_rise = max_rise
        self.history: list[tuple[int, float]] = []

    def update(self, step: int, loss_high: float) -> bool:
        """Add an evaluation; True after ``num_rises`` rises in a row, or far above the lowest loss.

        A step at or before the last one (a resumed run evaluating again) replaces what followed.
        """
        self.history = [entry for entry in self.history if entry[0] < step] + [(step, loss_high)]
        losses = [loss for _, loss in self.history]
        recent = losses[-self.num_rises - 1 :]
        # `not <=` and not `>`: a NaN loss counts as a rise.
        rises = len(recent) > self.num_rises and all(
            not after <= before for before, after in pairwise(recent)
        )
        if rises and not recent[-1] <= recent[0] * (1 + self.min_rise):
            curve = " -> ".join(f"{loss:.4f}" for loss in recent)
            self._warn(f"rose over {self.num_rises} evaluations up to", step, curve)
            return True
        lowest = min(losses)
        if not loss_high <= lowest * (1 + self.max_rise):
            self._warn("is far above its lowest at", step, f"{lowest:.4f} -> {loss_high:.4f}")
            return True
        return False

    def _warn(self, what: str, step: int, curve: str) -> None:
        logger.warning(
            "collapse: held-out loss at high noise %s step %d (%s); "
            "lower the learning rate or warm up longer",
            what,
            step,
            curve,
        )
