import pytest
import torch

from sana_train.flow.guidance import ClassifierFreeGuidance


def captioned(x, t):
    return 2.0 * x + t.view(-1, *[1] * (x.ndim - 1))


def null(x, t):
    return -x


def doubled(x, t):
    """One network over captions for the first half and null contexts for the second."""
    half = len(x) // 2
    return torch.cat([captioned(x[:half], t[:half]), null(x[half:], t[half:])])


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 6.0])
def test_extrapolates_from_null_to_caption(scale):
    x, t = torch.randn(3, 2, 4, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    guidance = ClassifierFreeGuidance(scale)
    expected = (1 - scale) * null(x, t) + scale * captioned(x, t)
    torch.testing.assert_close(guidance.from_doubled(doubled)(x, t), expected)


def test_only_scale_one_needs_no_null_branch():
    assert [ClassifierFreeGuidance(scale).needs_null for scale in (0.0, 1.0, 4.5)] == [True, False, True]


def test_doubled_is_one_call_and_takes_frame_times():
    calls = []

    def network(x, t):
        calls.append((tuple(x.shape), tuple(t.shape)))
        return x

    ClassifierFreeGuidance(3.0).from_doubled(network)(torch.zeros(2, 4, 5, 1, 1), torch.zeros(2, 5))
    assert calls == [((4, 4, 5, 1, 1), (4, 5))]


@pytest.mark.parametrize("scale", [-1.0, float("nan")])
def test_negative_scale_is_refused(scale):
    with pytest.raises(ValueError, match="guidance scale"):
        ClassifierFreeGuidance(scale)
