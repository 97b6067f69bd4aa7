"""Samplers against the one distribution whose flow is known in closed form.

For latents ~ N(m, S) the noisy point at t has covariance C = (1 - t)^2 S + t^2 I, the velocity is
E[noise - latents | x] = (t I - (1 - t) S) C^-1 (x - (1 - t) m) - m, and the flow maps x at s to
(1 - t) m + C_t^(1/2) C_s^(-1/2) (x - (1 - s) m) at t.
"""

import math
from itertools import pairwise

import pytest
import torch

from sana_train.cli.load import compose_config
from sana_train.flow.samplers import DPMSolverPP2M, Euler, Heun
from sana_train.flow.schedules import ShiftedLinear
from sana_train.flow.time_sampling import shift_time
from tests.flow.reference_scheduler import published_scheduler

SAMPLERS = [Euler(), Heun(), DPMSolverPP2M()]
NAMES = [type(sampler).__name__ for sampler in SAMPLERS]
ORDERS = [1, 2, 2]


class Gaussian:
    """N(mean, basis diag(variances) basis^T) in float64."""

    def __init__(self, variances=(0.02, 0.3, 1.0, 2.5), seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.dim = len(variances)
        self.variances = torch.tensor(variances, dtype=torch.float64)
        self.mean = torch.randn(self.dim, dtype=torch.float64, generator=generator)
        square = torch.randn(self.dim, self.dim, dtype=torch.float64, generator=generator)
        self.basis = torch.linalg.qr(square).Q
        self.covariance = self.basis * self.variances @ self.basis.T
        self.num_calls = 0

    def velocity(self, x, t):
        assert t.shape == x.shape[:1]
        self.num_calls += 1
        t = t[:, None].to(x)
        mean, variances = self.mean.to(x), self.variances.to(x)
        centred = (x - (1 - t) * mean) @ self.basis.to(x)
        gain = (t - (1 - t) * variances) / ((1 - t) ** 2 * variances + t**2)
        return (gain * centred) @ self.basis.T.to(x) - mean

    def flow(self, x, start, end):
        """The exact state at time ``end`` of ``x`` at time ``start``."""

        def spread(t):
            return ((1 - t) ** 2 * self.variances + t**2).sqrt()

        centred = (x - (1 - start) * self.mean) @ self.basis
        return (centred * spread(end) / spread(start)) @ self.basis.T + (1 - end) * self.mean


def test_the_closed_form_obeys_its_own_equation():
    gaussian = Gaussian()
    x = torch.randn(5, gaussian.dim, dtype=torch.float64)
    end = torch.tensor(0.6, dtype=torch.float64)
    there, tangent = torch.func.jvp(lambda t: gaussian.flow(x, 0.9, t), (end,), (torch.ones_like(end),))
    torch.testing.assert_close(tangent, gaussian.velocity(there, end.expand(5)))


@pytest.mark.parametrize(("sampler", "tolerance"), zip(SAMPLERS, [0.05, 2e-3, 5e-3], strict=True), ids=NAMES)
def test_mean_and_covariance_are_recovered(sampler, tolerance):
    """The sampler is affine in the noise here: noise 0 gives the mean, unit noises the factor of S."""
    gaussian = Gaussian()
    noise = torch.cat([torch.zeros(1, gaussian.dim), torch.eye(gaussian.dim)]).double()
    out = sampler.sample(gaussian.velocity, noise, ShiftedLinear(200, 3.0).sigmas())
    mean, factor = out[0], out[1:] - out[0]
    torch.testing.assert_close(mean, gaussian.mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(factor.T @ factor, gaussian.covariance, rtol=0, atol=tolerance)


def error_at(sampler, num_steps, in_log_snr):
    """Largest error at t = 0.02 from t = 0.98, steps equal in t or in half-log-SNR."""
    gaussian = Gaussian()
    start, end = 0.98, 0.02
    if in_log_snr:
        edge = math.log((1 - start) / start)
        sigmas = torch.sigmoid(-torch.linspace(edge, -edge, num_steps + 1, dtype=torch.float64))
    else:
        sigmas = torch.linspace(start, end, num_steps + 1, dtype=torch.float64)
    x = torch.randn(16, gaussian.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = sampler.sample(gaussian.velocity, x, sigmas)
    exact = gaussian.flow(x, sigmas[0], sigmas[-1])
    return (out - exact).abs().max().item()


@pytest.mark.parametrize(("sampler", "order"), zip(SAMPLERS, ORDERS, strict=True), ids=NAMES)
def test_order_of_convergence(sampler, order):
    in_log_snr = isinstance(sampler, DPMSolverPP2M)
    errors = [error_at(sampler, num_steps, in_log_snr) for num_steps in (128, 256, 512)]
    measured = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert measured == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize(("sampler", "order"), zip(SAMPLERS, [1, 2, 1.7], strict=True), ids=NAMES)
def test_order_over_the_whole_path(sampler, order):
    """From t = 1 to t = 0 on the shifted grid: DPM-Solver++ loses some at ends of infinite log-SNR."""
    gaussian = Gaussian(variances=(0.3, 1.0, 2.5))
    x = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = gaussian.flow(x, 1.0, 0.0)
    errors = [
        (sampler.sample(gaussian.velocity, x, ShiftedLinear(n, 3.0).sigmas()) - exact).abs().max().item()
        for n in (256, 512)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def kept_variance(schedule, variance):
    """The share of a Gaussian's variance that is left in samples; 1 is right."""
    gaussian = Gaussian(variances=(variance,))
    noise = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    out = DPMSolverPP2M().sample(gaussian.velocity, noise, schedule.sigmas())
    return (out[1] - out[0]).square().item() / variance


@pytest.mark.parametrize(("convergence", "least"), [("default", 0.85), ("2b", 0.75)])
def test_shipped_schedules_keep_what_varies_little(convergence, least):
    """Textures are latents of small variance; a last step from far out would average them away."""
    node = compose_config([f"convergence={convergence}", "scale=tiny"]).convergence.generator
    assert node.sampler._target_.endswith("DPMSolverPP2M")
    schedule = ShiftedLinear(node.schedule.num_steps, node.schedule.shift)
    assert all(least < kept_variance(schedule, variance) < 1.05 for variance in (0.1, 0.3, 1.0, 3.0))
    assert kept_variance(ShiftedLinear(20, 8.0), 0.1) < 0.5


def test_dpm_solver_is_exact_for_a_point_mass():
    """A constant clean estimate is what its step integrates exactly, however few the steps."""
    gaussian = Gaussian(variances=(0.0, 0.0))
    x = torch.randn(3, 2, dtype=torch.float64)
    out = DPMSolverPP2M().sample(gaussian.velocity, x, [1.0, 0.7, 0.3, 0.1])
    torch.testing.assert_close(out, gaussian.flow(x, 1.0, 0.1), rtol=0, atol=1e-14)


def test_dpm_solver_takes_the_reference_steps():
    reference = published_scheduler()
    reference.set_timesteps(20)
    weights = 0.3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))

    def velocity(x, t):
        return torch.tanh(x @ weights) * (1 + t[:, None])

    noise = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    expected = noise
    for sigma, timestep in zip(reference.sigmas, reference.timesteps):
        expected = reference.step(velocity(expected, sigma.expand(3)), timestep, expected).prev_sample
    ours = DPMSolverPP2M().sample(velocity, noise, reference.sigmas)
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize(("sampler", "num_calls"), zip(SAMPLERS, [7, 13, 7], strict=True), ids=NAMES)
def test_evaluations_and_progress(sampler, num_calls):
    gaussian = Gaussian()
    seen = []
    sampler.sample(
        gaussian.velocity,
        torch.zeros(1, gaussian.dim),
        ShiftedLinear(7, 1.0).sigmas(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert gaussian.num_calls == num_calls
    assert seen == [(step, 7) for step in range(1, 8)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
def test_half_precision_noise_is_integrated_in_float32(sampler):
    gaussian = Gaussian()
    noise = torch.randn(4, gaussian.dim, generator=torch.Generator().manual_seed(2)).bfloat16()
    sigmas = ShiftedLinear(400, 1.0).sigmas()
    dtypes = set()

    def velocity(x, t):
        dtypes.add(x.dtype)
        return gaussian.velocity(x, t)

    out = sampler.sample(velocity, noise, sigmas)
    assert out.dtype == torch.bfloat16
    assert dtypes == {torch.float32}
    exact = sampler.sample(gaussian.velocity, noise.double(), sigmas)
    torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
def test_partly_noised_latents_continue(sampler):
    """Starting from noisy latents at t = 0.6, as a refiner does, lands where the flow lands."""
    gaussian = Gaussian(variances=(0.5, 1.0))
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    sigmas = shift_time(torch.linspace(1, 0, 101, dtype=torch.float64), 1.5)
    sigmas = torch.cat([torch.tensor([0.6], dtype=torch.float64), sigmas[sigmas < 0.6]])
    out = sampler.sample(gaussian.velocity, x, sigmas)
    torch.testing.assert_close(out, gaussian.flow(x, 0.6, 0.0), rtol=0, atol=0.04)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
def test_increasing_sigmas_are_refused(sampler):
    with pytest.raises(ValueError, match="noise \\(1\\) first"):
        sampler.sample(Gaussian().velocity, torch.zeros(1, 4), [0.0, 0.5, 1.0])


def test_shifted_time_is_where_the_velocity_is_asked():
    times = []

    def velocity(x, t):
        times.append(t.item())
        return torch.zeros_like(x)

    Euler().sample(velocity, torch.zeros(1, 2), ShiftedLinear(4, 8.0).sigmas())
    assert times == pytest.approx([shift_time(t, 8.0) for t in (1.0, 0.75, 0.5, 0.25)])
