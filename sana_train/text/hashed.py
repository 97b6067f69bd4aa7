"""A text encoder without weights: every word is a vector hashed from its spelling.

Legend: B captions, S = max_tokens, D = dim, V distinct words seen so far, O offsets of the window.
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
_VERSION = 2  # part of the fingerprint; raise it when the vectors change

# Share of a word in the vector of a token 0, 1, 2 ... words away. Five reach from a shape to its motion
# in every phrasing of the world ("left drifting fine striped red cross"). With a position of RMS 0.18
# a token inside a caption has RMS 0.9. Sums of multiples of 1/32 are exact, whatever their order.
_SCALES = (1 / 2, 10 / 32, 8 / 32, 7 / 32, 6 / 32, 5 / 32)
_POSITION_SCALE = 1 / 4


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
    """Token vector = word + the five words before and after it + position, nearer words louder.

    Every offset hashes words anew (``red`` one word before differs from ``red`` two words after), so
    a single token tells what its object is like: at ``cross`` of "a striped yellow cross drifts left"
    a linear map reads texture, colour and motion.

    Args:
        dim: width D of the context, even.
        max_tokens: length S of the context; a longer caption is an error, never cut.
        seed: another seed is another, equally good vocabulary.
    """

    def __init__(self, dim: int = 256, max_tokens: int = 48, seed: int = 0) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"the hashed text encoder needs an even dim of at least 2, got {dim}")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        self.dim = dim
        self.max_tokens = max_tokens
        self.seed = seed
        self._positions = _POSITION_SCALE * position_vectors(max_tokens, dim)
        self._row_of: dict[str, int] = {}
        self._reach = len(_SCALES) - 1
        self._num_offsets = 2 * self._reach + 1
        self._vocabulary = torch.zeros(self._num_offsets, dim)  # ((1 + V) O, D); word 0 is padding

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

        padded = F.pad(rows, (self._reach, self._reach))
        window = padded.unfold(1, self._num_offsets, 1)[mask]  # (tokens, O): who stands at each offset
        lookup = window * self._num_offsets + torch.arange(self._num_offsets)
        words = F.embedding_bag(lookup, self._vocabulary, mode="sum")  # (tokens, D)
        context = torch.zeros(*rows.shape, self.dim)
        context[mask] = words + self._positions[mask.nonzero()[:, 1]]
        return context, mask

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
            vectors = torch.cat([self._vocabulary_rows(word) for word in new])
            self._row_of.update({word: len(self._row_of) + i for i, word in enumerate(new, start=1)})
            self._vocabulary = torch.cat([self._vocabulary, vectors])
        row_of = self._row_of
        padding = [0] * self.max_tokens
        padded = [([row_of[word] for word in words] + padding)[: self.max_tokens] for words in tokens]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(tokens), self.max_tokens)

    def _vocabulary_rows(self, word: str) -> Tensor:
        """(O, D) what the word adds to the token ``reach`` words after it, ..., to itself, ..., before it."""
        offsets = range(-self._reach, self._reach + 1)
        return torch.stack(
            [
                _SCALES[abs(offset)] * hash_vector(f"{offset}/{word}", self.dim, self.seed)
                for offset in offsets
            ]
        )
