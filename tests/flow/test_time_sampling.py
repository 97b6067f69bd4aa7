import math

import pytest
import torch
from scipy import stats

from sana_train.flow.time_sampling import LogitNormal, Uniform, shift_time
from sana_train.utils.rng import SampleRng

NUM_SAMPLES = 40_000


def draw(sampler, seed=0):
    return sampler.sample(SampleRng(seed, torch.arange(NUM_SAMPLES))).double()


def test_shift_keeps_the_ends_and_moves_towards_noise():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shift_time(t, 3.0)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:-1] > t[1:-1]).all()
    assert shift_time(0.5, 3.0) == 0.75
    torch.testing.assert_close(shift_time(shift_time(t, 3.0), 1 / 3.0), t)


def test_shift_scales_the_noise_to_signal_ratio():
    t = 0.3
    shifted = shift_time(t, 8.0)
    assert shifted / (1 - shifted) == pytest.approx(8.0 * t / (1 - t))


@pytest.mark.parametrize(
    "sampler",
    [LogitNormal(), LogitNormal(mean=-0.5, std=0.7, shift=1.0), LogitNormal(mean=0.2, std=1.4, shift=8.0)],
    ids=["default", "plain", "shifted"],
)
def test_logit_normal_has_its_quantiles(sampler):
    """logit(t) ~ N(mean + log(shift), std^2)."""
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    expected = sampler.mean + math.log(sampler.shift) + sampler.std * torch.special.ndtri(levels)
    measured = torch.quantile(torch.logit(draw(sampler)), levels)
    error = math.sqrt(0.05 * 0.95 / NUM_SAMPLES) / stats.norm.pdf(stats.norm.ppf(0.05))  # in stds
    assert (measured - expected).abs().max() < 4 * error * sampler.std


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_uniform_is_uniform_before_the_shift(shift):
    unshifted = shift_time(draw(Uniform(shift)), 1 / shift)
    assert stats.kstest(unshifted.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "sampler", [Uniform(3.0), LogitNormal(std=5.0, shift=100.0)], ids=["uniform", "logit"]
)
def test_times_stay_in_the_unit_interval(sampler):
    t = sampler.sample(SampleRng(1, torch.arange(NUM_SAMPLES)))
    assert t.dtype == torch.float32
    assert t.shape == (NUM_SAMPLES,)
    assert t.min() >= 0
    assert t.max() <= 1


def test_a_time_belongs_to_its_sample():
    sampler = LogitNormal()
    whole = sampler.sample(SampleRng(0, torch.arange(8)))
    parts = [sampler.sample(SampleRng(0, ordinals)) for ordinals in torch.arange(8).split(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(sampler.sample(SampleRng(1, torch.arange(8))), whole)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Uniform(shift=0.0), "shift must be positive"),
        (lambda: LogitNormal(shift=-1.0), "shift must be positive"),
        (lambda: LogitNormal(std=0.0), "standard deviation"),
        (lambda: LogitNormal(std=math.nan), "standard deviation"),
    ],
)
def test_impossible_distributions_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
