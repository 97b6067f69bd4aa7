"""The straight path between latents and noise, and every conversion along it.

Time ``t`` lies in [0, 1] and **t = 1 is noise**:

    noisy = (1 - t) * latents + t * noise        velocity = d noisy / d t = noise - latents

Legend: B batch, C channels, T latent frames. ``t`` is (B,), or (B, T) where every latent frame has
its own time; latents, noise and velocity are (B, C, T, ...), or any (B, ...) under a (B,) ``t``.
"""

from __future__ import annotations

from torch import Tensor


def expand_time(t: Tensor, like: Tensor) -> Tensor:
    """``t`` of shape (B,) or (B, T) viewed so that it broadcasts over ``like`` (B, C, T, ...).

    Raises:
        ValueError: ``t`` is neither one time per sample nor one per latent frame.
    """
    if t.ndim == 1 and t.shape[0] == like.shape[0]:
        return t.reshape(-1, *[1] * (like.ndim - 1))
    if t.ndim == 2 and like.ndim >= 3 and t.shape == (like.shape[0], like.shape[2]):
        return t.reshape(t.shape[0], 1, t.shape[1], *[1] * (like.ndim - 3))
    raise ValueError(
        f"t of shape {tuple(t.shape)} does not fit latents of shape {tuple(like.shape)}; "
        "give one time per sample, (B,), or one per latent frame, (B, T)"
    )


def noisy_latents(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point at time ``t`` between ``latents`` (t = 0) and ``noise`` (t = 1)."""
    t = expand_time(t, latents)
    return (1.0 - t) * latents + t * noise


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """What the network learns to predict."""
    return noise - latents


def clean_from_velocity(noisy: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The latents at the path's clean end."""
    return noisy - expand_time(t, noisy) * velocity


def noise_from_velocity(noisy: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The noise at the path's other end."""
    return noisy + (1.0 - expand_time(t, noisy)) * velocity
