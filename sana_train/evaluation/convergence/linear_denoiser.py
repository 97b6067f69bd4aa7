"""The best linear denoiser: what can be had at each noise level without learning anything.

Under a Gaussian N(mean, S) fitted to train latents, noisy = (1-t) z + t e is Gaussian with
covariance V = (1-t)^2 S + t^2 I, and the best prediction of the noise is affine in it:

    E[e | noisy] = t V^-1 (noisy - (1-t) mean),   velocity = (E[e | noisy] - noisy) / (1-t).

S shrinks the sample covariance of whole clips towards one shared covariance of a single latent
site, S = a * sample + (1-a) * site. So it stays well defined with fewer clips than numbers per
clip; a = 0 denoises each site alone, a -> 1 is PCA of whole clips. ``a`` is chosen per noise level
on train clips left out of the fit. The sample part has rank n, so V is inverted through an n x n
matrix (Woodbury), never through a (CTHW)^2 one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from sana_train.evaluation.convergence.loss_bands import SIGMAS, level_losses

SHRINKAGES = (0.0, 0.5, 0.8, 0.95, 0.99)


class LinearDenoiser:
    """Affine velocity of a Gaussian fitted to normalised latents.

    Args:
        latents: (n, C, T, H, W) train latents, normalised.
        shrinkage: ``a`` per noise level; levels not listed use the nearest listed one.
    """

    def __init__(self, latents: Tensor, shrinkage: dict[float, float]) -> None:
        latents = latents.double()
        self.shrinkage = shrinkage
        self.mean = latents.mean(0)  # (C, T, H, W)
        residual = latents - self.mean
        sites = rearrange(residual, "n c t h w -> (n t h w) c")
        variance, self.basis = torch.linalg.eigh(sites.T @ sites / len(sites))
        self.site_variance = variance.clamp_min(0.0)  # (C,), in the eigenbasis
        self.factors = self._rotate(residual) / len(latents) ** 0.5  # (n, C, P): S = F^T F
        self._solvers: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}

    @classmethod
    def fit(
        cls,
        latents: Tensor,
        sigmas: Sequence[float] = SIGMAS,
        seed: int = 0,
        shrinkages: Sequence[float] = SHRINKAGES,
    ) -> LinearDenoiser:
        """Fit on seven eighths of ``latents``, choose ``a`` per level on the rest, refit on all.

        Costs 50 products of n^2 CTHW: seconds for 512 clips of 6,144 numbers on two cores.

        Raises:
            ValueError: fewer than 16 clips.
        """
        if len(latents) < 16:
            raise ValueError(
                f"fitting the best linear denoiser takes at least 16 training clips, got {len(latents)}: "
                "give the training split more, or a convergence.reference with a zero level in its levels.npz"
            )
        num_left_out = len(latents) // 8
        kept, left_out = latents[:-num_left_out], latents[-num_left_out:]
        trial = cls(kept, {})
        losses = []
        for shrinkage in shrinkages:
            trial.shrinkage = {0.0: shrinkage}
            losses.append(level_losses(trial.velocity, left_out, sigmas, seed).mean(1))
        best = torch.stack(losses).argmin(0).tolist()
        return cls(latents, {sigma: shrinkages[i] for sigma, i in zip(sigmas, best, strict=True)})

    def velocity(self, noisy: Tensor, t: float) -> Tensor:
        """Best affine velocity for ``noisy`` (B, C, T, H, W) at time ``t`` in (0, 1)."""
        if not 0.0 < t < 1.0:
            raise ValueError(f"the linear denoiser is defined for 0 < t < 1, got {t}")
        x = noisy.double()
        noise = t * self._unrotate(self._solve(self._rotate(x - (1 - t) * self.mean), t), x.shape)
        return ((noise - x) / (1 - t)).to(noisy.dtype)

    def losses(self, latents: Tensor, sigmas: Sequence[float], seed: int) -> Tensor:
        """Per-clip loss (L, n) on held-out latents, on the same noise as any denoiser's."""
        return level_losses(self.velocity, latents, sigmas, seed).cpu()

    def _rotate(self, latents: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, P) with channels in the site covariance's eigenbasis."""
        return torch.einsum("bcp,ck->bkp", latents.flatten(2), self.basis)

    def _unrotate(self, rotated: Tensor, shape: torch.Size) -> Tensor:
        return torch.einsum("bkp,ck->bcp", rotated, self.basis).reshape(shape)

    def _solve(self, residual: Tensor, t: float) -> Tensor:
        """V^-1 residual, by Woodbury with V = D + gain F^T F and D diagonal."""
        nearest = min(self.shrinkage, key=lambda level: abs(level - t))
        shrinkage = self.shrinkage[nearest]
        diagonal = ((1 - t) ** 2 * (1 - shrinkage) * self.site_variance + t**2)[:, None]  # (C, 1)
        scaled = residual / diagonal
        gain = (1 - t) ** 2 * shrinkage
        if gain == 0.0:
            return scaled
        key = (t, shrinkage)
        if key not in self._solvers:
            weighted = (self.factors / diagonal).flatten(1)  # (n, CP)
            inner = torch.eye(len(weighted), dtype=weighted.dtype, device=weighted.device)
            inner = inner + gain * self.factors.flatten(1) @ weighted.T
            self._solvers = {key: (weighted, torch.linalg.cholesky(inner))}  # one level at a time
        weighted, cholesky = self._solvers[key]
        projected = scaled.flatten(1) @ self.factors.flatten(1).T  # (B, n)
        solved = torch.cholesky_solve(projected.T, cholesky).T
        return scaled - gain * (solved @ weighted).reshape(scaled.shape)
