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
    """

    def __init__(self, num_rises: int = 3, min_rise: float = 0.01) -> None:
        if num_rises < 1:
            raise ValueError(f"num_rises must be at least 1, got {num_rises}")
        self.num_rises = num_rises
        self.min_rise = min_rise
        self.history: list[tuple[int, float]] = []

    def update(self, step: int, loss_high: float) -> bool:
        """Add an evaluation; True while the last ``num_rises`` steps of the curve all rose.

        A step at or before the last one (a resumed run evaluating again) replaces what followed.
        """
        self.history = [entry for entry in self.history if entry[0] < step] + [(step, loss_high)]
        recent = [loss for _, loss in self.history[-self.num_rises - 1 :]]
        if len(recent) <= self.num_rises:
            return False
        # `not <=` and not `>`: a NaN loss counts as a rise.
        rises = all(not after <= before for before, after in pairwise(recent))
        collapsed = rises and not recent[-1] <= recent[0] * (1 + self.min_rise)
        if collapsed:
            curve = " -> ".join(f"{loss:.4f}" for loss in recent)
            logger.warning(
                "collapse: held-out loss at high noise rose over %d evaluations up to step %d (%s); "
                "lower the learning rate or warm up longer",
                self.num_rises,
                step,
                curve,
            )
        return collapsed
