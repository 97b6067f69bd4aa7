"""What is compared of two clips: colour of 16 px cells, error and power by spatial frequency.

Legend: B clips, F frames, K radial bins. Clips are (B, 3, F, H, W) in [-1, 1]; PSNR has peak 1
after mapping to [0, 1]. Frequencies are those of the 2-D DCT-II in units of Nyquist: it mirrors the
picture at its borders, so that they add no false high frequencies, and being orthonormal it splits
the squared error into bands exactly.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

# Radial bands in units of Nyquist; the last one is texture.
BANDS: dict[str, tuple[float, float]] = {
    "low": (0.0, 1 / 16),
    "mid": (1 / 16, 1 / 4),
    "top": (1 / 4, math.inf),
}
CELL_PX = 16
NUM_TOP_BINS = 8
# Variance of rounding to 8 bits: power below it is not in any picture that can be stored.
_ROUNDING_POWER = (1 / 255) ** 2 / 12
_RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_WHITE_D65 = (0.95047, 1.0, 1.08883)


def comparison_frames(video: Tensor) -> Tensor:
    """Frames 1 and on of a 1 + 8k clip: the part that every autoencoder's decoder returns."""
    return video[:, :, 1:] if video.shape[2] % 2 else video


def low_pass_lab(video: Tensor) -> Tensor:
    """Mean colour of every 16 px cell of every frame in CIE Lab (D65): (B, 3, F, H/16, W/16).

    Averaged in linear light, where the mean of a fine pattern is the colour seen from afar.
    """
    frames = video.float().add(1).div(2).clamp(0, 1).transpose(1, 2).flatten(0, 1)  # (BF, 3, H, W)
    linear = torch.where(frames <= 0.04045, frames / 12.92, ((frames + 0.055) / 1.055) ** 2.4)
    cells = F.avg_pool2d(linear, CELL_PX)
    xyz = torch.einsum("xc,bchw->bxhw", cells.new_tensor(_RGB_TO_XYZ), cells)
    xyz = xyz / cells.new_tensor(_WHITE_D65)[:, None, None]
    knee = 6 / 29
    root = torch.where(xyz > knee**3, xyz.clamp_min(knee**3) ** (1 / 3), xyz / (3 * knee**2) + 4 / 29)
    x, y, z = root.unbind(1)
    lab = torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
    return lab.unflatten(0, (len(video), -1)).transpose(1, 2)


def delta_e(a: Tensor, b: Tensor) -> Tensor:
    """Mean CIE 1976 colour difference of aligned Lab cells, (B, 3, F, h, w) twice -> (B,)."""
    return (a - b).square().sum(1).sqrt().flatten(1).mean(1)


def colour_quantiles(lab: Tensor) -> Tensor:
    """Sorted cells of each Lab channel less its median, (B, 3, F*h*w): which colours stand out, not where.

    The median is the backdrop's tone, which captions leave open. With it in, a clip without any object
    was nearer to a held-out clip than a right sample of its caption was.
    """
    cells = lab.flatten(2)
    return (cells - cells.median(dim=2, keepdim=True).values).sort(dim=2).values


def quantile_delta_e(a: Tensor, b: Tensor) -> Tensor:
    """Mean colour difference of matched quantiles, (B, 3, m) twice -> (B,)."""
    return (a - b).square().sum(1).sqrt().mean(1)


def band_psnr(video: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """PSNR of the error energy inside each radial band, and of frame differences: (B,) each, in dB."""
    error = (video.float() - reference.float()) / 2
    power = _dct_power(error).mean((1, 2))  # (B, H, W)
    radius = _radius(*error.shape[-2:], error.device)
    area = radius.numel()
    bands = {
        name: _psnr((power * ((radius >= low) & (radius < high))).sum((1, 2)) / area)
        for name, (low, high) in BANDS.items()
    }
    bands["motion"] = _psnr(error.diff(dim=2).square().flatten(1).mean(1))
    return bands


def top_band_log_power(video: Tensor) -> Tensor:
    """Log power of the top band's radial bins averaged over colours and frames: (B, K), natural log."""
    power = _dct_power(video.float() / 2).mean((1, 2)).flatten(1)  # (B, HW)
    radius = _radius(*video.shape[-2:], video.device).flatten()
    low = BANDS["top"][0]
    bins = ((radius - low) / (1 - low) * NUM_TOP_BINS).floor().long()
    inside = (bins >= 0) & (bins < NUM_TOP_BINS)  # the corners beyond Nyquist are left out
    member = F.one_hot(bins[inside], NUM_TOP_BINS).float()
    return torch.log(power[:, inside] @ member / member.sum(0) + _ROUNDING_POWER)


def spectrum_gap(log_power: Tensor, reference: Tensor) -> Tensor:
    """Mean |log P - log P_ref| over the top band's bins, (B, K) twice -> (B,); 0.7 is a factor of two."""
    return (log_power - reference).abs().mean(1)


def _psnr(mean_square: Tensor) -> Tensor:
    return -10 * torch.log10(mean_square.clamp_min(1e-10))


def _dct_power(video: Tensor) -> Tensor:
    rows = _dct_matrix(video.shape[-2], video.device)
    columns = _dct_matrix(video.shape[-1], video.device)
    return (rows @ video @ columns.T).square()


@lru_cache(maxsize=8)
def _dct_matrix(size: int, device: torch.device) -> Tensor:
    """Orthonormal DCT-II, (size, size)."""
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * (index[None, :] + 0.5) * index[:, None] / size) * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return matrix.float().to(device)


@lru_cache(maxsize=8)
def _radius(height: int, width: int, device: torch.device) -> Tensor:
    """Radial frequency of every DCT coefficient in units of Nyquist, (H, W)."""
    vertical = torch.arange(height, device=device)[:, None] / height
    horizontal = torch.arange(width, device=device)[None, :] / width
    return torch.hypot(vertical, horizontal)
