"""Counter randomness: good numbers, and the same numbers however the samples are dealt out."""

import math

import pytest
import torch
from scipy import stats

from sana_train.utils.rng import _GOLDEN, SampleRng, _mix, stream_key

NUM = 2000


def rng(ordinals=None, seed=0):
    return SampleRng(seed, torch.arange(NUM) if ordinals is None else torch.as_tensor(ordinals))


@pytest.mark.parametrize("offset", [0, 10_000_000, 2**40])
def test_uniform_is_uniform(offset):
    u = rng(torch.arange(offset, offset + NUM)).uniform("a", (10,)).double()
    assert u.shape == (NUM, 10)
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("axis", ["samples", "elements"])
def test_uniform_fills_the_square(axis):
    """Neighbouring samples, and neighbouring elements of one sample, are independent."""
    u = rng().uniform("a", (11,))
    first, second = (u[:-1], u[1:]) if axis == "samples" else (u[:, :-1], u[:, 1:])
    cells = (first * 8).long() * 8 + (second * 8).long()
    counts = torch.bincount(cells.flatten(), minlength=64)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_normal_has_normal_moments_and_tails():
    z = rng().normal("a", (100,)).double().flatten()
    n = z.numel()
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert 3.8 < z.abs().max() < 6.5
    assert stats.kstest(z[:20_000].numpy(), "norm").pvalue > 1e-3


def test_normal_elements_are_uncorrelated():
    """Box and Muller draw elements e and e + half from the same bits."""
    z = rng().normal("a", (7,)).double()
    correlation = torch.corrcoef(z.T) - torch.eye(7)
    assert correlation.abs().max() < 5 / math.sqrt(NUM)
    squares = torch.corrcoef((z**2).T) - torch.eye(7)
    assert squares.abs().max() < 5 / math.sqrt(NUM)


@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_batch_split_and_order_do_not_matter(draw):
    def values(ordinals):
        return getattr(rng(ordinals), draw)("a", (3, 5))

    whole = values(torch.arange(12))
    assert torch.equal(torch.cat([values(part) for part in torch.arange(12).split(5)]), whole)
    order = torch.tensor([7, 0, 11, 3])
    assert torch.equal(values(order), whole[order])
    assert torch.equal(values([4]), whole[4:5])


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 1)])
@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_shapes(draw, shape):
    value = getattr(rng([5, 6]), draw)("a", shape)
    assert value.shape == (2, *shape)
    assert value.dtype == torch.float32


def test_streams_seeds_and_samples_do_not_collide():
    """20,000 of 2^63 bit patterns per stream: a single repeat would be a defect."""
    rows = [rng(seed=seed)._bits(stream, 10) for seed in (0, 1) for stream in ("time", "noise", "dropout")]
    bits = torch.cat(rows).flatten()
    assert bits.unique().numel() == bits.numel()


def test_streams_and_seeds_are_uncorrelated():
    draws = torch.stack(
        [rng(seed=seed).normal(stream) for seed in (0, 1, 2) for stream in ("time", "noise")]
    ).double()
    correlation = torch.corrcoef(draws) - torch.eye(6)
    assert correlation.abs().max() < 5 / math.sqrt(NUM)


def test_keys_do_not_run_together():
    assert stream_key(1, "1/a") != stream_key(11, "a")
    assert stream_key(0, "a") != stream_key(0, "b")


def test_the_mixer_is_splitmix64():
    """The published generator's first outputs from state 0."""
    states = torch.tensor([1, 2]) * _GOLDEN
    assert [value % 2**64 for value in _mix(states).tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_values_are_pinned():
    """A change here changes every run: noise, times and dropout of old checkpoints would not resume."""
    assert stream_key(0, "noise") == 2258784678044586894
    assert rng([0, 1], seed=3)._bits("noise", 2).tolist() == [
        [-1936389483883605928, 4146584045944996672],
        [5422504292955296289, -8776981167275244491],
    ]
