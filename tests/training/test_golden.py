"""A short loss curve that must not move unnoticed: data order, noise, objective and optimiser in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_harness import launch, metrics

# Of `launch(max_steps=6)`; a change of any of these numbers is a change of results: say so in CHANGELOG.md.
LOSSES = (4.098011, 2.793968, 1.784829, 1.145330, 1.324741, 0.744507)


def test_the_loss_curve_is_the_one_on_record(tmp_path: Path) -> None:
    launch(tmp_path / "golden", max_steps=6)
    losses = [line["train/loss"] for line in metrics(tmp_path / "golden") if "train/loss" in line]
    assert losses == pytest.approx(LOSSES, rel=1e-3)  # other processors sum in another order
