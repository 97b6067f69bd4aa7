from __future__ import annotations

import numpy as np

from sana_train.evaluation.convergence.levels import Levels
from sana_train.evaluation.convergence.s90 import recovery_curves
from sana_train.evaluation.convergence.verdict import run_curves, verdict


def level(value: float, num_clips: int = 256) -> np.ndarray:
    return np.full(num_clips, value, dtype=np.float32)


BANDS = Levels(zero={"heldout/loss_high": level(1.0)}, reference={"heldout/loss_high": level(0.5)})
FULL = Levels(
    reference={
        "samples/semantic": level(1.0),
        "samples/colour": level(1.0),
        "samples/palette_delta_e": level(2.0),
        "samples/texture": level(0.9),
        "samples/spectrum_gap": level(0.5),
    }
)


def sampled(semantic: float, colour: float, texture: float) -> dict[str, float]:
    """Metrics at the given recoveries between the zero level (step 0) and ``FULL``."""
    return {
        "samples/semantic": semantic,
        "samples/colour": colour,
        "samples/palette_delta_e": 12 - 10 * colour,
        "samples/texture": 0.9 * texture,
        "samples/spectrum_gap": 2.5 - 2 * texture,
    }


def test_a_run_without_samples_answers_for_the_high_noise_band_and_not_for_texture():
    history = [(0, {"heldout/loss_high": 1.4}), (100, {"heldout/loss_high": 0.7})]
    done = [*history, (500, {"heldout/loss_high": 0.52})]
    line = verdict(done, BANDS)
    assert line.startswith("high-noise band back by 500? yes (96% at 500, S90 ")
    assert line.endswith("texture: not judged")
    assert "not yet (60% at 100, the run stopped there)" in verdict(history, BANDS)
    slow = [*history, (500, {"heldout/loss_high": 0.6})]
    assert "no (80% at 500, S90 not reached)" in verdict(slow, BANDS)


def test_a_gpu_run_answers_for_all_three():
    history = [
        (0, sampled(0, 0, 0)),
        (500, sampled(0.95, 0.5, 0.2)),
        (5000, sampled(1.0, 0.97, 0.6)),
        (10000, sampled(1.0, 1.0, 0.95)),
    ]
    semantics, colour, texture = verdict(history, FULL).split("; ")
    assert semantics.startswith("semantics back by 500? yes (95% at 500, S90 ")
    assert colour.startswith("colour back by 5,000? yes (97% at 5,000, S90 ")
    assert texture.startswith("texture back by 5,000? no (60% at 5,000, S90 ")


def test_few_samples_stand_beside_the_high_noise_band_and_judge_no_texture():
    few = Levels(zero=BANDS.zero, reference=BANDS.reference | {k: v[:32] for k, v in FULL.reference.items()})
    history = [
        (0, sampled(0, 0, 0) | {"heldout/loss_high": 1.4}),
        (500, sampled(0.95, 0.9, 0.9) | {"heldout/loss_high": 0.9}),
    ]
    semantics, band, texture = verdict(history, few).split("; ")
    assert semantics.startswith("semantics back by 500? yes (95% at 500, S90 ")
    assert semantics.endswith(", by 32 samples")
    assert band == "high-noise band back by 500? no (20% at 500, S90 not reached)"
    assert texture == "texture: not judged"


def test_without_a_reference_nothing_is_judged():
    line = verdict([(0, {"heldout/loss_high": 1.0})], Levels())
    assert "not judged (no zero level or no native reference)" in line


def test_without_a_gap_nothing_is_judged_either():
    useless = Levels(zero=BANDS.zero, reference={"heldout/loss_high": level(1.0)})
    line = verdict([(0, {"heldout/loss_high": 1.4}), (500, {"heldout/loss_high": 0.5})], useless)
    assert line.startswith("high-noise band back by 500? not judged (no gap: ")
    assert "not reached" not in line


def test_a_diverged_run_is_not_back():
    history = [(0, {"heldout/loss_high": 1.0}), (500, {"heldout/loss_high": np.inf})]
    assert "no (diverged at 500, S90 not reached)" in verdict(history, BANDS)


def test_the_zero_level_of_random_takes_the_place_of_the_runs_own_step_0():
    history = [(0, sampled(0.5, 0, 0)), (10, sampled(0.75, 0, 0))]
    shipped = Levels(zero={"samples/semantic": level(0.0)}, reference=FULL.reference)
    for levels, expected in ((FULL, [0.0, 0.5]), (shipped, [0.5, 0.75])):
        measured = run_curves(history, levels, "semantic")
        assert measured is not None
        assert measured[0] == [0, 10]
        assert recovery_curves(measured[1])[0, 0].tolist() == expected
