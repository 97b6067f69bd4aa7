import pytest
import torch

from sana_train.flow.objective import velocity_loss


def test_one_loss_per_sample():
    velocity = torch.zeros(3, 2, 4, 5, 5)
    predicted = torch.tensor([0.0, 1.0, -3.0]).view(3, 1, 1, 1, 1).expand_as(velocity)
    assert velocity_loss(predicted, velocity).tolist() == [0.0, 1.0, 9.0]


def test_a_sample_does_not_see_the_others():
    predicted, velocity = torch.randn(2, 4, 3, 2, 2, 2, dtype=torch.float64)
    apart = torch.cat([velocity_loss(p[None], v[None]) for p, v in zip(predicted, velocity)])
    torch.testing.assert_close(velocity_loss(predicted, velocity), apart)


def test_half_precision_is_compared_in_float32():
    """1 + 2^-12 squared is 1 in bfloat16; the mean of many would round as well."""
    predicted = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    velocity = torch.full((1, 4096), -(2.0**-12))
    loss = velocity_loss(predicted, velocity)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((1 + 2.0**-12) ** 2, rel=1e-6)


def test_gradient_reaches_the_prediction():
    predicted = torch.ones(2, 4, requires_grad=True)
    velocity_loss(predicted, torch.zeros(2, 4)).sum().backward()
    torch.testing.assert_close(predicted.grad, torch.full((2, 4), 0.5))


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="output channels"):
        velocity_loss(torch.zeros(2, 1, 4), torch.zeros(2, 3, 4))
