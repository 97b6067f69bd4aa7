"""Integrators of the probability flow d x / d t = velocity(x, t) from noise (t = 1) to latents (t = 0).

Each takes ``sample(velocity, noise, sigmas, progress)``:

    velocity: callable (latents (B, ...), t (B,)) -> (B, ...).
    noise: (B, ...) the state at ``sigmas[0]``.
    sigmas: (num_steps + 1,) times, strictly decreasing in [0, 1].
    progress: called with (steps done, num_steps) after every step.

and returns the state at ``sigmas[-1]`` in the dtype of ``noise``. In between the state is float32 or
wider: a bfloat16 state would lose the small last steps. Gradients flow unless the caller stops them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sana_train.flow.schedules import check_sigmas

Velocity = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, int], None]


class Sampler(Protocol):
    """Anything that walks from noise to latents."""

    def sample(
        self,
        velocity: Velocity,
        noise: Tensor,
        sigmas: Tensor | Sequence[float],
        progress: Progress | None = None,
    ) -> Tensor: ...


class _Walk:
    """What the samplers share: the grid as Python floats, the state's dtype, calls and progress."""

    def __init__(
        self, velocity: Velocity, noise: Tensor, sigmas: Tensor | Sequence[float], progress: Progress | None
    ) -> None:
        self.times: list[float] = sigmas.tolist() if isinstance(sigmas, Tensor) else list(sigmas)
        check_sigmas(self.times)
        self.num_steps = len(self.times) - 1
        self.dtype = torch.promote_types(noise.dtype, torch.float32)
        self._velocity = velocity
        self._progress = progress

    def velocity(self, x: Tensor, t: float) -> Tensor:
        batch_t = torch.full((x.shape[0],), t, dtype=self.dtype, device=x.device)
        return self._velocity(x, batch_t).to(self.dtype)

    def done(self, step: int) -> None:
        if self._progress is not None:
            self._progress(step + 1, self.num_steps)


class Euler:
    """First order, one evaluation per step."""

    def sample(
        self,
        velocity: Velocity,
        noise: Tensor,
        sigmas: Tensor | Sequence[float],
        progress: Progress | None = None,
    ) -> Tensor:
        walk = _Walk(velocity, noise, sigmas, progress)
        x = noise.to(walk.dtype)
        for step in range(walk.num_steps):
            t, t_next = walk.times[step : step + 2]
            x = x + (t_next - t) * walk.velocity(x, t)
            walk.done(step)
        return x.to(noise.dtype)


class Heun:
    """Second order by the trapezoid rule, two evaluations per step.

    A step that ends at t = 0 is an Euler step: a network is hardly trained there, and one such step
    does not lower the order.
    """

    def sample(
        self,
        velocity: Velocity,
        noise: Tensor,
        sigmas: Tensor | Sequence[float],
        progress: Progress | None = None,
    ) -> Tensor:
        walk = _Walk(velocity, noise, sigmas, progress)
        x = noise.to(walk.dtype)
        for step in range(walk.num_steps):
            t, t_next = walk.times[step : step + 2]
            slope = walk.velocity(x, t)
            if t_next > 0.0:
                predicted = x + (t_next - t) * slope
                slope = 0.5 * (slope + walk.velocity(predicted, t_next))
            x = x + (t_next - t) * slope
            walk.done(step)
        return x.to(noise.dtype)


class DPMSolverPP2M:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2) for a velocity network, one evaluation per step.

    With alpha = 1 - t, sigma = t and half-log-SNR lambda = log(alpha / sigma), the clean estimate
    D_i = x_i - t_i v_i is extrapolated in lambda and one step is exact for a constant D:

        D = D_i + (h_i / 2 h_{i-1}) (D_i - D_{i-1}),     h_i = lambda_{i+1} - lambda_i
        x_{i+1} = (sigma' / sigma) x_i + (alpha' - alpha sigma' / sigma) D

    lambda is infinite at both ends of the path, so D is not extrapolated (a first-order step) in the
    first step, after a step from t = 1, and in a step to t = 0.
    """

    def sample(
        self,
        velocity: Velocity,
        noise: Tensor,
        sigmas: Tensor | Sequence[float],
        progress: Progress | None = None,
    ) -> Tensor:
        walk = _Walk(velocity, noise, sigmas, progress)
        x = noise.to(walk.dtype)
        previous: Tensor | None = None
        h_previous = math.inf
        for step in range(walk.num_steps):
            t, t_next = walk.times[step : step + 2]
            h = _half_log_snr(t_next) - _half_log_snr(t)
            clean = x - t * walk.velocity(x, t)
            estimate = clean
            if previous is not None and math.isfinite(h) and math.isfinite(h_previous):
                estimate = clean + (h / (2.0 * h_previous)) * (clean - previous)
            ratio = t_next / t
            x = ratio * x + (1.0 - t_next - (1.0 - t) * ratio) * estimate
            previous, h_previous = clean, h
            walk.done(step)
        return x.to(noise.dtype)


def _half_log_snr(t: float) -> float:
    """log((1 - t) / t), infinite at 0 and 1."""
    if t <= 0.0:
        return math.inf
    return math.log((1.0 - t) / t) if t < 1.0 else -math.inf
