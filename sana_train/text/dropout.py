"""Caption dropout: some samples train on the null context, which makes guidance possible.

Legend: B batch, S text tokens, D text width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sana_train.utils.rng import SampleRng


def drop_captions(
    context: Tensor, mask: Tensor, null_context: Tensor, rng: SampleRng, prob: float
) -> tuple[Tensor, Tensor]:
    """Replace whole captions by ``null_context`` with probability ``prob`` per sample.

    A dropped sample keeps its caption's mask, as SANA trains: pair the null context with the
    caption's own mask when sampling, too.

    Args:
        context: (B, S, D).
        mask: (B, S) bool, True = token.
        null_context: (S' >= S, D); its first S rows are used.
        rng: decides per ordinal, so neither batch split nor order matters.
        prob: in [0, 1].

    Returns:
        context (B, S, D) and the unchanged mask.

    Raises:
        ValueError: ``prob`` outside [0, 1], or a null context that does not fit.
    """
    if not 0.0 <= prob <= 1.0:
        raise ValueError(f"the caption dropout probability must lie in [0, 1], got {prob}")
    num_tokens, dim = context.shape[1:]
    if null_context.ndim != 2 or null_context.shape[0] < num_tokens or null_context.shape[1] != dim:
        raise ValueError(
            f"the null context has shape {tuple(null_context.shape)}, expected at least {num_tokens} tokens "
            f"of width {dim}; build the denoiser with the text encoder's max_tokens and dim"
        )
    dropped = rng.uniform("caption_dropout") < prob  # (B,)
    null = null_context[:num_tokens].to(context)
    return torch.where(dropped.to(context.device)[:, None, None], null, context), mask
