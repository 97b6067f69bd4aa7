from __future__ import annotations

import logging
import math

import pytest

from sana_train.evaluation.convergence.collapse import CollapseFlag


def flags(losses: list[float], **kwargs: float) -> list[bool]:
    flag = CollapseFlag(**kwargs)
    return [flag.update(step, loss) for step, loss in enumerate(losses)]


def test_three_rises_in_a_row_raise_the_flag_and_say_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert flags([1.0, 0.5, 0.6, 0.7, 0.8]) == [False] * 4 + [True]
    assert "0.5000 -> 0.6000 -> 0.7000 -> 0.8000" in caplog.text


def test_two_rises_a_dip_and_two_rises_do_not():
    assert not any(flags([0.5, 0.6, 0.7, 0.65, 0.7, 0.74]))


def test_a_plateau_is_not_a_rise():
    assert not any(flags([0.5, 0.5, 0.5, 0.5, 0.5]))
    assert not any(flags([0.5, 0.55, 0.55, 0.6, 0.65]))


def test_jitter_below_the_relative_rise_is_ignored():
    creeping = [0.5, 0.5001, 0.5002, 0.5003]
    assert not any(flags(creeping))
    assert flags(creeping, min_rise=0.0)[-1]


def test_the_flag_falls_when_the_loss_does():
    assert flags([0.5, 0.6, 0.7, 0.8, 0.9, 0.4]) == [False] * 3 + [True, True, False]


def test_one_steep_rise_between_two_evaluations_raises_the_flag_too(caplog):
    """What two diverging runs of a record looked like: one rise between evaluations, then a slow descent."""
    with caplog.at_level(logging.WARNING):
        assert flags([1.5, 0.65, 1.93, 1.52, 0.96]) == [False, False, True, True, False]
    assert "far above its lowest at step 2 (0.6500 -> 1.9300)" in caplog.text


def test_a_diverged_loss_counts_as_rising():
    assert flags([0.5, 0.6, 0.7, math.nan])[-1]
    assert flags([0.5, 0.6, 0.7, math.inf])[-1]


def test_evaluating_a_step_again_after_a_resume_adds_no_rise():
    flag = CollapseFlag()
    for step, loss in [(0, 0.5), (10, 0.6), (20, 0.7), (20, 0.71)]:
        assert not flag.update(step, loss)
    assert flag.update(30, 0.8)


def test_a_flag_that_would_always_be_up_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        CollapseFlag(num_rises=0)
