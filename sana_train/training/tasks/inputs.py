"""What tasks in latent space read of a batch, encoded here where the batch does not bring it."""

from __future__ import annotations

import torch
from torch import Tensor

from sana_train.protocols import Autoencoder, TextEncoder
from sana_train.types import Batch


@torch.no_grad()
def normalised_latents(batch: Batch, autoencoder: Autoencoder) -> Tensor:
    """(B, C, T, H, W) in float32."""
    raw = batch.latents
    if raw is None:
        assert batch.video is not None
        # As latents that are encoded once: training would otherwise differ by where they come from.
        with torch.autocast(batch.video.device.type, enabled=False):
            raw = autoencoder.encode(batch.video.float())
    return autoencoder.normalise(raw.float())


def caption_context(batch: Batch, text_encoder: TextEncoder, device: torch.device) -> tuple[Tensor, Tensor]:
    """Context (B, S, D) in float32 and mask (B, S)."""
    if batch.context is not None and batch.context_mask is not None:
        return batch.context.float(), batch.context_mask
    context, mask = text_encoder.encode(batch.captions)
    return context.to(device), mask.to(device)
