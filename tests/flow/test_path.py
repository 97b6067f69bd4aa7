import pytest
import torch

from sana_train.flow import path


@pytest.fixture(params=["per sample", "per frame"])
def triple(request):
    """Latents, noise and t in float64, t away from the ends."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, 3, 5, 2, 2, dtype=torch.float64, generator=generator)
    shape = (4,) if request.param == "per sample" else (4, 5)
    t = 0.05 + 0.9 * torch.rand(shape, dtype=torch.float64, generator=generator)
    return latents, noise, t


def test_t_one_is_noise_and_t_zero_is_latents():
    latents, noise = torch.randn(2, 3, 4, 2, 2, 2)
    assert torch.equal(path.noisy_latents(latents, noise, torch.ones(3)), noise)
    assert torch.equal(path.noisy_latents(latents, noise, torch.zeros(3)), latents)
    assert torch.equal(path.velocity_target(latents, noise), noise - latents)


def test_velocity_is_the_paths_derivative():
    latents, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    t = torch.full((3,), 0.4, dtype=torch.float64)
    noisy, tangent = torch.func.jvp(
        lambda time: path.noisy_latents(latents, noise, time), (t,), (torch.ones_like(t),)
    )
    assert noisy.shape == latents.shape
    torch.testing.assert_close(tangent, path.velocity_target(latents, noise), rtol=0, atol=1e-15)


def test_every_conversion_round_trips(triple):
    latents, noise, t = triple
    noisy = path.noisy_latents(latents, noise, t)
    velocity = path.velocity_target(latents, noise)
    exact = {"rtol": 0, "atol": 1e-13}
    torch.testing.assert_close(path.clean_from_velocity(noisy, velocity, t), latents, **exact)
    torch.testing.assert_close(path.noise_from_velocity(noisy, velocity, t), noise, **exact)


def test_frame_times_act_on_their_own_frame():
    latents, noise = torch.randn(2, 2, 3, 4, 1, 1)
    t = torch.zeros(2, 4)
    t[1, 2] = 1.0
    noisy = path.noisy_latents(latents, noise, t)
    assert torch.equal(noisy[1, :, 2], noise[1, :, 2])
    noisy[1, :, 2] = latents[1, :, 2]
    assert torch.equal(noisy, latents)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 2)])
def test_a_time_of_another_shape_is_refused(shape):
    latents = torch.zeros(2, 3, 4, 1, 1)
    with pytest.raises(ValueError, match=r"one time per sample"):
        path.noisy_latents(latents, latents, torch.zeros(shape))
