"""A text encoder without weights: every word is a vector hashed from its spelling.

Legend: B captions, S = max_tokens, D = dim, V distinct words seen so far.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_TOKEN = re.compile(r"\w+|[^\w\s]")
_VERSION = 1  # part of the fingerprint; raise it when the vectors change

# Powers of two, so that products are exact and sums do not depend on fused multiply-add.
_NEIGHBOUR_SCALE = 0.5
_POSITION_SCALE = 0.5


def tokenise(caption: str) -> list[str]:
    """Lower-cased words and single punctuation marks."""
    return _TOKEN.findall(caption.lower())


def hash_vector(name: str, dim: int, seed: int) -> Tensor:
    """(D,) of +1 and -1 from SHAKE-256: unit RMS, nearly orthogonal between names, equal everywhere."""
    digest = hashlib.shake_256(f"{seed}/{name}".encode()).digest(-(-dim // 8))
    signs = [1.0 if digest[i // 8] >> (i % 8) & 1 else -1.0 for i in range(dim)]
    return torch.tensor(signs)


def position_vectors(max_tokens: int, dim: int) -> Tensor:
    """(S, D) cosines then sines, wavelengths from 2 pi tokens to 2 pi * max_tokens."""
    half = dim // 2
    rows = []
    for position in range(max_tokens):
        angles = [position * max_tokens ** (-i / max(1, half - 1)) for i in range(half)]
        rows.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    return torch.tensor(rows, dtype=torch.float64).float()


class HashedTextEncoder:
    """Token vector = word + half (word before + word after) + half position.

    Roles are hashed apart (``red`` before a word differs from ``red`` after it), so who has which
    attribute can be read from a single token: "red cube" and "blue cube" differ at "cube".

    Args:
        dim: width D of the context, even.
        max_tokens: length S of the context; a longer caption is an error, never cut.
        seed: another seed is another, equally good vocabulary.
    """

    def __init__(self, dim: int = 128, max_tokens: int = 48, seed: int = 0) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"the hashed text encoder needs an even dim of at least 2, got {dim}")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        self.dim = dim
        self.max_tokens = max_tokens
        self.seed = seed
        self._positions = _POSITION_SCALE * position_vectors(max_tokens, dim)
        self._row_of: dict[str, int] = {}
        self._vocabulary = torch.zeros(1, 3 * dim)  # (1 + V, 3D): word | as neighbour before | after

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """-> context (B, S, D) float32, zeros after the last token, and mask (B, S) bool.

        Raises:
            ValueError: a caption without tokens, or of more than ``max_tokens``.
        """
        if isinstance(captions, str):
            raise ValueError(f"encode takes a sequence of captions, got the single string {captions!r}")
        tokens = [tokenise(caption) for caption in captions]
        self._check(captions, tokens)
        rows = self._rows(tokens)  # (B, S)
        mask = rows > 0

        word, before, after = self._vocabulary.split(self.dim, dim=1)  # (1 + V, D) each
        context = F.embedding(rows, word)
        context[:, 1:] += F.embedding(rows[:, :-1], before)
        context[:, :-1] += F.embedding(rows[:, 1:], after)
        context += self._positions
        return context.masked_fill_(~mask[..., None], 0.0), mask

    def fingerprint(self) -> str:
        """Sixteen hex digits of everything the vectors depend on."""
        text = f"hashed/{_VERSION}/{self.dim}/{self.max_tokens}/{self.seed}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _check(self, captions: Sequence[str], tokens: list[list[str]]) -> None:
        for i, (caption, words) in enumerate(zip(captions, tokens, strict=True)):
            if not words:
                raise ValueError(
                    f"caption {i} of {len(captions)} is {caption!r}, which has no words; expected 1 to "
                    f"{self.max_tokens} tokens. Drop the clip, or use the denoiser's null context for "
                    "no caption"
                )
            if len(words) > self.max_tokens:
                raise ValueError(
                    f"caption {i} of {len(captions)} has {len(words)} tokens, expected at most "
                    f"{self.max_tokens}; shorten it or raise max_tokens: {caption!r}"
                )

    def _rows(self, tokens: list[list[str]]) -> Tensor:
        """(B, S) int64 rows of the vocabulary, 0 = padding; words not seen before are added."""
        new = sorted({word for words in tokens for word in words if word not in self._row_of})
        if new:
            vectors = torch.stack([self._vocabulary_row(word) for word in new])
            self._row_of.update({word: len(self._row_of) + i for i, word in enumerate(new, start=1)})
            self._vocabulary = torch.cat([self._vocabulary, vectors])
        row_of = self._row_of
        padding = [0] * self.max_tokens
        padded = [([row_of[word] for word in words] + padding)[: self.max_tokens] for words in tokens]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(tokens), self.max_tokens)

    def _vocabulary_row(self, word: str) -> Tensor:
        """(3D,) the word's own vector and its traces on the token after it and the token before it."""
        own, before, after = (
            hash_vector(f"{role}/{word}", self.dim, self.seed) for role in ("word", "before", "after")
        )
        return torch.cat([own, _NEIGHBOUR_SCALE * before, _NEIGHBOUR_SCALE * after])
