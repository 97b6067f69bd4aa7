import math

import pytest
import torch

from sana_train.text.dropout import drop_captions
from sana_train.utils.rng import SampleRng


def batch(size, null_tokens=6):
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(size, 4, 3, generator=generator)
    mask = torch.rand(size, 4, generator=generator) < 0.7
    null = torch.randn(null_tokens, 3, generator=generator)
    return context, mask, null


def dropped_samples(out, context):
    return (out != context).flatten(1).any(dim=1)


def test_whole_captions_become_the_null_context_and_masks_stay():
    context, mask, null = batch(200)
    out, out_mask = drop_captions(context, mask, null, SampleRng(0, torch.arange(200)), 0.5)
    dropped = dropped_samples(out, context)
    assert 0 < dropped.sum() < 200
    assert torch.equal(out[dropped], null[:4].expand(int(dropped.sum()), 4, 3))
    assert torch.equal(out[~dropped], context[~dropped])
    assert torch.equal(out_mask, mask)


@pytest.mark.parametrize("prob", [0.0, 0.1, 0.5, 1.0])
def test_the_rate_is_the_probability(prob):
    context, mask, null = batch(5000)
    out, _ = drop_captions(context, mask, null, SampleRng(3, torch.arange(5000)), prob)
    rate = dropped_samples(out, context).float().mean().item()
    assert abs(rate - prob) <= 4 * math.sqrt(prob * (1 - prob) / 5000)


def test_a_drop_belongs_to_its_sample():
    """Batch split and order change nothing."""
    context, mask, null = batch(64)
    ordinals = torch.arange(1000, 1064)
    whole, _ = drop_captions(context, mask, null, SampleRng(0, ordinals), 0.5)
    for rows in torch.randperm(64).split(9):
        part, _ = drop_captions(context[rows], mask[rows], null, SampleRng(0, ordinals[rows]), 0.5)
        assert torch.equal(part, whole[rows])


def test_the_null_context_takes_the_contexts_dtype():
    context, mask, null = batch(4)
    out, _ = drop_captions(context.bfloat16(), mask, null, SampleRng(0, torch.arange(4)), 1.0)
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("prob", [-0.1, 1.1, float("nan")])
def test_impossible_probabilities_are_refused(prob):
    context, mask, null = batch(2)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        drop_captions(context, mask, null, SampleRng(0, torch.arange(2)), prob)


@pytest.mark.parametrize("shape", [(3, 3), (6, 5), (3,), (2, 6, 3)])
def test_a_null_context_of_another_size_is_refused(shape):
    context, mask, _ = batch(2)
    with pytest.raises(ValueError, match="expected at least 4 tokens of width 3"):
        drop_captions(context, mask, torch.zeros(shape), SampleRng(0, torch.arange(2)), 0.1)
