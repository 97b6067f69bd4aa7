"""The fixed held-out clips which every evaluation of every run is made on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

NO_CLIPS = "there are no held-out clips to evaluate on; all that the run has are holes"


@dataclass
class HeldOut:
    """Held-out clips in the target space.

    Attributes:
        latents: (n, C, T, H, W), normalised.
        context: (n, S, D) encoded captions.
        context_mask: (n, S) bool, True = token.
        captions: n strings.
        attributes: ground truth as in ``Batch.attributes``; empty where there is none.
    """

    latents: Tensor
    context: Tensor
    context_mask: Tensor
    captions: tuple[str, ...]
    attributes: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {
            "latents": len(self.latents),
            "context": len(self.context),
            "context_mask": len(self.context_mask),
            "captions": len(self.captions),
            **{f"attributes[{name}]": len(value) for name, value in self.attributes.items()},
        }
        if len(set(sizes.values())) > 1:
            raise ValueError(f"every held-out field needs one entry per clip, got {sizes}")
        if not self.captions:
            raise ValueError(NO_CLIPS)

    @classmethod
    def joined(cls, parts: Sequence[HeldOut]) -> HeldOut:
        """All clips of ``parts``, in order; -1 where a part does not have an attribute.

        Raises:
            ValueError: no parts.
        """
        if not parts:
            raise ValueError(NO_CLIPS)
        like = {name: value for part in parts for name, value in part.attributes.items()}
        return cls(
            torch.cat([part.latents for part in parts]),
            torch.cat([part.context for part in parts]),
            torch.cat([part.context_mask for part in parts]),
            tuple(caption for part in parts for caption in part.captions),
            {
                name: torch.cat(
                    [p.attributes.get(name, value.new_full((len(p), *value.shape[1:]), -1)) for p in parts]
                )
                for name, value in like.items()
            },
        )

    def __len__(self) -> int:
        return len(self.captions)

    def slice(self, start: int, stop: int) -> HeldOut:
        return HeldOut(
            self.latents[start:stop],
            self.context[start:stop],
            self.context_mask[start:stop],
            self.captions[start:stop],
            {name: value[start:stop] for name, value in self.attributes.items()},
        )

    def chunks(self, size: int) -> Iterator[tuple[int, HeldOut]]:
        """(first clip, clips) in runs of at most ``size``."""
        for start in range(0, len(self), size):
            yield start, self.slice(start, start + size)

    def to(self, device: torch.device | str) -> HeldOut:
        return HeldOut(
            self.latents.to(device),
            self.context.to(device),
            self.context_mask.to(device),
            self.captions,
            {name: value.to(device) for name, value in self.attributes.items()},
        )

    def caption_hashes(self) -> list[str]:
        """Eight hex digits per caption: numbers made on other clips are not comparable."""
        return [hashlib.sha256(caption.encode()).hexdigest()[:8] for caption in self.captions]


@contextmanager
def evaluation_mode(denoiser: object) -> Iterator[None]:
    """No gradients, and a module in eval mode for the length of the block."""
    was_training = isinstance(denoiser, nn.Module) and denoiser.training
    if isinstance(denoiser, nn.Module):
        denoiser.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if isinstance(denoiser, nn.Module):
            denoiser.train(was_training)
