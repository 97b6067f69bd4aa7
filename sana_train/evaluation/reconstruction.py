"""How well an autoencoder gives clips back, and whether it keeps their textures.

Whole-frame PSNR can be passed by erasing texture, so the gain inside textured masks over a clip whose
textures are replaced by their mean colour is measured beside it, and structural similarity, which falls
where contrast is lost.

Legend: B batch, F frames, H/W pixels. Clips are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.evaluation import lpips_metric
from sana_train.protocols import ClipSource
from sana_train.types import Batch

_PEAK = 2.0  # of [-1, 1]


@runtime_checkable
class TexturedClips(Protocol):
    """A source that also knows its clips without their textures."""

    def flattened(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Clips (B, 3, F, H, W) with textures at their mean colour; textured pixels (B, 1, F, H, W) bool."""
        ...


def psnr(video: Tensor, reference: Tensor) -> Tensor:
    """(B,) PSNR in dB over all of a clip."""
    return _decibels((video.float() - reference.float()).square().flatten(1).mean(dim=1))


def ssim(video: Tensor, reference: Tensor) -> Tensor:
    """(B,) structural similarity of frames (Wang et al. 2004), the mean of a clip's; 1 = equal.

    Of pixels moved to [0, 2]: the luminance term is meant for values that are not negative.
    """
    pairs = zip(video.float() + 1.0, reference.float() + 1.0, strict=True)
    means = []
    for clip, other in pairs:  # one at a time: it holds five filtered copies
        frames, others = clip.transpose(0, 1), other.transpose(0, 1)
        similarity = structural_similarity_index_measure(frames, others, data_range=_PEAK, reduction="none")
        assert isinstance(similarity, Tensor)
        means.append(similarity.mean())
    return torch.stack(means)


def masked_psnr(video: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """(B,) PSNR in dB inside ``mask`` (B, 1, F, H, W); NaN where a clip's mask is empty."""
    inside = mask.to(torch.float32).expand_as(reference)
    squares = (video.float() - reference.float()).square() * inside
    return _decibels(squares.flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1))


def texture_gain_db(decoded: Tensor, reference: Tensor, flattened: Tensor, mask: Tensor) -> Tensor:
    """(B,) dB by which a reconstruction beats the mean colour of each texture, inside the textures."""
    return masked_psnr(decoded, reference, mask) - masked_psnr(flattened, reference, mask)


@torch.no_grad()
def evaluate_reconstruction(
    autoencoder: VideoAutoencoder,
    source: ClipSource,
    num_clips: int,
    batch_size: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    on_clips: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Means over the first ``num_clips`` sound clips of ``source``.

    ``psnr_db``, ``ssim``, ``num_clips``; from a ``TexturedClips`` source ``texture_gain_db``; and ``lpips``
    where it is installed with its backbone's weights.

    Args:
        dtype: the autoencoder's; clips are judged as they came, in fp32.
        on_clips: called with the number of clips judged since its last call.
    """
    values: dict[str, list[Tensor]] = {}
    perceptual = lpips_metric.PerceptualDistance(True, device) if lpips_metric.is_ready() else None
    for batch in sound_batches(source, num_clips, batch_size, device):
        assert batch.video is not None
        reference = autoencoder.reconstructed_frames(batch.video)
        decoded = autoencoder.decode(autoencoder.encode(batch.video.to(dtype)))
        measured = {"psnr_db": psnr(decoded, reference), "ssim": ssim(decoded, reference)}
        if perceptual is not None:
            measured["lpips"] = perceptual(decoded, reference)
        if isinstance(source, TexturedClips):
            flat, mask = (value.to(device) for value in source.flattened(batch.index.tolist()))
            flat, mask = autoencoder.reconstructed_frames(flat), autoencoder.reconstructed_frames(mask)
            measured["texture_gain_db"] = texture_gain_db(decoded, reference, flat, mask)
        for name, value in measured.items():
            values.setdefault(name, []).append(value)
        if on_clips is not None:
            on_clips(len(batch))
    joined = {name: torch.cat(parts) for name, parts in values.items()}
    means = {name: value.mean().item() for name, value in joined.items()}
    if "texture_gain_db" in joined:  # NaN for clips without texture
        means["texture_gain_db"] = joined["texture_gain_db"].nanmean().item()
    return {**means, "num_clips": float(len(joined["psnr_db"]))}


def sound_batches(
    source: ClipSource, num_clips: int, batch_size: int, device: torch.device | str
) -> Iterator[Batch]:
    """Batches of pixels without the holes, over the first ``num_clips`` clips.

    Raises:
        ValueError: the source gives no pixels, or only holes.
    """
    total = min(num_clips, len(source))
    is_empty = True
    for start in range(0, total, batch_size):
        batch = source.batch(range(start, min(start + batch_size, total))).to(device)
        if batch.video is None:
            raise ValueError(f"{type(source).__name__} gives no pixels; an autoencoder is judged on pixels")
        kept = batch.weight > 0
        if bool(kept.any()):
            is_empty = False
            yield Batch(
                index=batch.index[kept],
                ordinals=batch.ordinals[kept],
                weight=batch.weight[kept],
                captions=tuple(
                    text for text, keep in zip(batch.captions, kept.tolist(), strict=True) if keep
                ),
                video=batch.video[kept],
            )
    if is_empty:
        raise ValueError(f"none of the first {total} clips of {type(source).__name__} can be read")


def _decibels(mean_square: Tensor) -> Tensor:
    return 10.0 * torch.log10(_PEAK**2 / mean_square)
