import pytest
import torch

from sana_train.flow.schedules import CustomSigmas, ShiftedLinear


@pytest.mark.parametrize("num_steps", [1, 4, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_shifted_linear_walks_from_noise_to_clean(num_steps, shift):
    sigmas = ShiftedLinear(num_steps, shift).sigmas()
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas.dtype == torch.float64
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_shift_spaces_the_odds_not_the_times():
    """Undoing the shift on sigma / (1 - sigma) gives equal steps again."""
    sigmas = ShiftedLinear(10, 8.0).sigmas()[1:]
    odds = sigmas / (1 - sigmas) / 8.0
    torch.testing.assert_close(odds / (1 + odds), torch.linspace(0.9, 0, 10, dtype=torch.float64))


def test_default_ends_as_sana_samples():
    """50 steps at shift 8: the last step starts at 0.1404 (8 / 50 over 1 + 7 / 50)."""
    assert ShiftedLinear().sigmas()[-2].item() == pytest.approx(0.16 / 1.14)


def test_custom_sigmas_are_kept():
    values = [0.909375, 0.725, 0.421875, 0.0]
    assert CustomSigmas(values).sigmas().tolist() == values


@pytest.mark.parametrize(
    "values",
    [[], [1.0], [0.5, 0.5, 0.0], [0.2, 0.8], [1.2, 0.0], [1.0, -0.1], [1.0, float("nan"), 0.0]],
    ids=str,
)
def test_sigmas_that_cannot_be_walked_are_refused(values):
    with pytest.raises(ValueError, match="strictly decreasing values in"):
        CustomSigmas(values)


@pytest.mark.parametrize(("num_steps", "shift"), [(0, 1.0), (-3, 1.0), (4, 0.0)])
def test_impossible_schedules_are_refused(num_steps, shift):
    with pytest.raises(ValueError, match=r"at least one step|must be positive"):
        ShiftedLinear(num_steps, shift)
