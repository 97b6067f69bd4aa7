from __future__ import annotations

import math

import numpy as np
import pytest

from sana_train.evaluation.convergence.s90 import S90, Curve, recovery_curves, s90, steps_to_recovery

GRID = [0, 10, 100, 1000]


def test_interpolates_linearly_in_log_step():
    # recovery = log(1 + s) / log(1001): 0.9 is met where log(1 + s) = 0.9 log(1001).
    recovery = [math.log1p(step) / math.log(1001) for step in GRID]
    assert steps_to_recovery(GRID, recovery) == pytest.approx(1001**0.9 - 1)


def test_a_step_of_the_grid_that_meets_the_threshold_exactly_is_the_answer():
    assert steps_to_recovery(GRID, [0.0, 0.5, 0.9, 1.0]) == pytest.approx(100)


def test_a_curve_that_falls_back_counts_from_its_last_crossing():
    late = steps_to_recovery(GRID, [0.0, 0.95, 0.8, 1.0])
    assert late == pytest.approx(math.expm1((math.log1p(100) + math.log1p(1000)) / 2))
    assert steps_to_recovery(GRID, [0.0, 0.95, 0.99, 0.89]) == math.inf


def test_never_reached_reached_at_step_0_and_unknown_values():
    assert steps_to_recovery(GRID, [0.0, 0.2, 0.5, 0.8]) == math.inf
    assert steps_to_recovery(GRID, [0.9, 0.95, 1.2, 1.0]) == 0.0
    assert steps_to_recovery(GRID, [0.0, math.nan, 0.95, 1.0]) == 100
    assert steps_to_recovery(GRID, [0.0, 0.95, 1.0, math.nan]) == math.inf


def test_an_infinite_loss_is_far_from_recovery_and_never_a_number_that_is_none():
    assert steps_to_recovery(GRID, [0.0, -math.inf, 0.95, 1.0]) == 100
    assert steps_to_recovery(GRID, [0.0, 0.95, 1.0, -math.inf]) == math.inf


def test_bad_grids_are_refused():
    with pytest.raises(ValueError, match="must increase"):
        steps_to_recovery([0, 10, 10], [0.0, 0.1, 0.2])
    with pytest.raises(ValueError, match="one recovery per step"):
        steps_to_recovery(GRID, [0.0])


def ramp(num_seeds: int, num_clips: int, noise: float, seed: int = 0) -> Curve:
    """A loss that falls from 2 to 1 linearly in log step, with clip offsets shared by all steps."""
    rng = np.random.default_rng(seed)
    clips = rng.normal(0, 1, num_clips)
    falling = np.array([2 - math.log1p(step) / math.log(1001) for step in GRID])
    values = falling[None, :, None] + clips + noise * rng.normal(size=(num_seeds, len(GRID), num_clips))
    return Curve(values, zero=2 + clips, reference=1 + clips)


def test_offsets_shared_by_all_steps_do_not_widen_the_interval():
    """Clips differ by far more than the curve falls; paired resampling must cancel that."""
    result = s90(GRID, [ramp(3, 40, noise=0.0)], num_draws=200)
    expected = 1001**0.9 - 1
    assert result.per_seed == pytest.approx((expected,) * 3)
    assert (result.median, result.low, result.high) == pytest.approx((expected,) * 3)


def test_the_interval_covers_the_true_value_and_shrinks_with_more_clips():
    few = s90(GRID, [ramp(1, 20, noise=0.3)], num_draws=300)
    many = s90(GRID, [ramp(1, 2000, noise=0.3)], num_draws=300)
    assert many.low <= 1001**0.9 - 1 <= many.high
    assert few.low <= few.median <= few.high
    assert many.high - many.low < few.high - few.low


def test_seeds_that_never_arrive_make_the_upper_bound_open():
    values = np.repeat(np.array([[[2.0], [1.5], [1.05], [1.0]], [[2.0], [1.9], [1.9], [1.9]]]), 4, axis=2)
    curve = Curve(np.concatenate([values[:1], values[:1], values[1:]]), np.full(4, 2.0), np.full(4, 1.0))
    result = s90(GRID, [curve], num_draws=200)
    assert math.isinf(result.per_seed[2])
    assert 10 < result.median <= 100
    assert math.isinf(result.high)
    assert result.text(1000).endswith(" >1000]")
    assert S90((math.inf,), math.inf, math.inf, math.inf).text(10000) == "not reached"


def test_a_headline_has_recovered_as_far_as_the_last_of_its_metrics():
    loss = Curve(np.array([[[2.0], [0.0]]]), np.array([2.0]), np.array([1.0]))  # overshoots to 2
    accuracy = Curve(np.array([[[0.2], [0.5]]]), np.array([0.2]), np.array([0.8]), higher_is_better=True)
    assert recovery_curves([loss, accuracy])[0, 0].tolist() == pytest.approx([0.0, 0.5])
    assert recovery_curves([loss])[0, 0].tolist() == pytest.approx([0.0, 2.0])


def test_a_clip_on_which_a_metric_does_not_apply_is_left_out():
    values = np.array([[[0.0, np.nan], [1.0, np.nan]]])
    curve = Curve(values, np.array([0.0, np.nan]), np.array([1.0, np.nan]), higher_is_better=True)
    assert recovery_curves([curve])[0, 0].tolist() == [0.0, 1.0]


def test_one_infinite_clip_delays_its_own_step_and_leaves_the_others_alone():
    curve = ramp(2, 40, noise=0.0)
    curve.values[0, 1, 7] = np.inf  # seed 0 at step 10
    recovery = recovery_curves([curve], np.array([np.arange(40) != 7, np.ones(40)], dtype=np.float64))
    assert np.isfinite(recovery[0]).all()  # a draw without that clip
    assert recovery[1, 0, 1] == -np.inf
    assert np.isfinite(np.delete(recovery[1].flatten(), 1)).all()
    result = s90(GRID, [curve], num_draws=50)
    assert result.per_seed == pytest.approx((1001**0.9 - 1,) * 2)
    assert math.isfinite(result.low) and math.isfinite(result.high)
    curve.values[:, -1, 7] = np.inf
    assert s90(GRID, [curve], num_draws=50).per_seed == (math.inf, math.inf)


def test_a_reference_no_better_than_the_zero_level_leaves_no_gap_which_is_not_the_same_as_not_reached():
    no_gap = Curve(np.array([[[2.0], [3.0], [3.0], [3.0]]]), np.array([2.0]), np.array([3.0]))
    result = s90(GRID, [no_gap], num_draws=20)
    assert not result.has_gap
    assert result.text(1000) == "no gap"
    assert s90(GRID, [ramp(1, 4, 0.0)], num_draws=20).has_gap
    assert not s90(GRID, [ramp(1, 4, 0.0), no_gap], num_draws=20).has_gap  # half a headline is none
    never = s90(GRID, [Curve(no_gap.values, np.array([3.0]), np.array([1.0]))], num_draws=20)
    assert never.has_gap and never.text(1000) == "not reached"


def test_an_infinite_level_leaves_no_gap():
    curve = Curve(np.zeros((1, 4, 1)), np.array([np.inf]), np.array([0.0]))
    assert not s90(GRID, [curve], num_draws=20).has_gap


def test_curves_of_other_clips_are_refused():
    with pytest.raises(ValueError, match="share seeds, steps and clips"):
        s90(GRID, [Curve(np.zeros((1, 4, 5)), np.zeros(4), np.zeros(5))])
