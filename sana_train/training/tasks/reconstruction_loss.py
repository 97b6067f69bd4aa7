"""Losses between a clip and its reconstruction, one number per clip.

Legend: B batch, F frames, H/W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

_AMPLITUDE_FLOOR = 1e-4  # keeps the square root's slope finite where a patch has no energy


def gradient_loss(error: Tensor, num_scales: int) -> Tensor:
    """(B,) mean |d error / dx| + |d error / dy| over ``num_scales`` halvings of (B, 3, F, H, W).

    Taking differences is linear, so those of two clips differ by those of their error.
    """
    error = rearrange(error, "b c f h w -> b (c f) h w")
    total = error.new_zeros(error.shape[0])
    for scale in range(num_scales):
        if scale:
            error = F.avg_pool2d(error, 2)
        rows = (error[..., 1:, :] - error[..., :-1, :]).abs()
        columns = (error[..., 1:] - error[..., :-1]).abs()
        total = total + rows.flatten(1).mean(dim=1) + columns.flatten(1).mean(dim=1)
    return total / num_scales


def spectrum_loss(video: Tensor, reference: Tensor, patch_px: int) -> Tensor:
    """(B,) mean difference of local amplitude spectra over patches of ``patch_px`` squared.

    Blind to phase: a texture in the wrong place costs little here, an erased one its full amplitude.
    """
    basis = fourier_basis(patch_px, video.device)
    difference = _amplitudes(video, basis, patch_px) - _amplitudes(reference, basis, patch_px)
    return difference.abs().flatten(1).mean(dim=1)


def _amplitudes(video: Tensor, basis: Tensor, patch_px: int) -> Tensor:
    """(B, patches, frequencies)."""
    pattern = "b c f (h p) (w q) -> b (c f h w) (p q)"
    patches = rearrange(video, pattern, p=patch_px, q=patch_px)
    real, imaginary = (patches @ basis).chunk(2, dim=-1)
    return (real.square() + imaginary.square() + _AMPLITUDE_FLOOR).sqrt()


def fourier_basis(patch_px: int, device: torch.device) -> Tensor:
    """(patch_px^2, 2K): cosines, then sines, of K frequencies of an orthonormal 2-D DFT.

    Half of the plane is enough for real input; the mean (frequency 0) is the pixel loss's business.
    """
    axis = torch.arange(patch_px, device=device)
    row_frequency, column_frequency = torch.meshgrid(axis, axis[: patch_px // 2 + 1], indexing="ij")
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    turns = rows.reshape(-1, 1) * row_frequency.reshape(1, -1) + columns.reshape(-1, 1) * (
        column_frequency.reshape(1, -1)
    )
    angle = 2.0 * math.pi * (turns % patch_px)[:, 1:].to(torch.float32) / patch_px
    return torch.cat([angle.cos(), angle.sin()], dim=1) / patch_px
