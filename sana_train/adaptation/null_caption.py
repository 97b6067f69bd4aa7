"""Where a denoiser's null caption starts, if it does not come with loaded weights.

SANA-Video's null caption is no learnt vector: NVlabs' training writes the encoding of the empty caption,
without the instruction, over the buffer ``y_embedder.y_embedding`` when it loads a network (their file
``null_embed_diffusers_gemma-2-2b-it_300token_2304.pth``), and guidance is held against it ever after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from sana_train.adaptation.latent_swap import Adaptable
from sana_train.models.keys import NULL_CONTEXT


class EmptyCaptionStart:
    """``model`` with a text encoder's empty caption for the null caption's initial value.

    Args:
        model: the denoiser.
        empty_caption: gives (S, D), asked only if the null caption starts afresh, because an encoder is
            large; None where the encoder has no empty caption, and the model's own rule holds.
    """

    def __init__(self, model: Adaptable, empty_caption: Callable[[], Tensor | None]) -> None:
        self._model, self._empty_caption = model, empty_caption

    def fresh_state(self, keys: Iterable[str], seed: int) -> dict[str, Tensor]:
        """The model's own, but for the null caption, which is the same for every seed.

        Raises:
            ValueError: the empty caption has another length or width than the null caption.
        """
        fresh = self._model.fresh_state(keys, seed)
        empty = self._empty_caption() if NULL_CONTEXT in fresh else None
        if empty is None:
            return fresh
        if empty.shape != fresh[NULL_CONTEXT].shape:
            (num_tokens, dim), (own_tokens, own_dim) = empty.shape, fresh[NULL_CONTEXT].shape
            raise ValueError(
                f"the text encoder gives the empty caption as {num_tokens} tokens of width {dim}, the "
                f"denoiser holds {own_tokens} of width {own_dim} for it; set model.max_tokens={num_tokens} "
                f"and model.caption_dim={dim}, or text.max_tokens={own_tokens}"
            )
        return {**fresh, NULL_CONTEXT: empty.cpu()}

    def state_dict(self) -> dict[str, Any]:
        return self._model.state_dict()

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self._model.named_parameters()
