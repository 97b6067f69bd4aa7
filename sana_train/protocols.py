"""Seams between the floors. Any class with these members fits; nothing has to be inherited.

Legend: B batch, C latent channels, T/H/W latent grid, F frames, S text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from sana_train.types import Batch, LatentSpec
from sana_train.utils.rng import SampleRng


@runtime_checkable
class Denoiser(Protocol):
    """A network that predicts velocity = noise - latents at time t (1 = noise)."""

    latent_channels: int
    null_context: Tensor  # (S, D) buffer: what the network sees for a dropped caption

    def prepare(self, context: Tensor, mask: Tensor) -> Any:
        """Caption work done once per sample: (B, S, D), (B, S) bool -> an opaque state."""
        ...

    def __call__(self, latents: Tensor, t: Tensor, state: Any, positions: Tensor | None = None) -> Tensor:
        """Velocity (B, C, T, H, W) for noisy latents of that shape.

        ``t`` is (B,) or (B, T) in [0, 1]; ``positions`` is (3, N) real-valued token positions
        (t, h, w axes), by default the latent grid's integers.
        """
        ...


@runtime_checkable
class Autoencoder(Protocol):
    """A frozen video autoencoder. Latents are raw unless a name says ``normalised``."""

    spec: LatentSpec

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> raw latents (B, C, T, H/sh, W/sw), the posterior's mode."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents -> (B, 3, F', H, W), clamped to [-1, 1]; F' leaves out skipped frames."""
        ...

    def normalise(self, latents: Tensor) -> Tensor:
        """Raw -> zero mean, unit variance, the space the DiT lives in."""
        ...

    def denormalise(self, latents: Tensor) -> Tensor:
        """Inverse of ``normalise``."""
        ...

    def fingerprint(self) -> str:
        """Hash of weights and statistics; caches made by another autoencoder differ in it."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Captions to context vectors."""

    dim: int
    max_tokens: int

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """-> context (B, S, D) float32 padded with zeros and mask (B, S) bool, S = max_tokens."""
        ...

    def fingerprint(self) -> str: ...


@runtime_checkable
class ReadsEmptyCaptions(Protocol):
    """A text encoder that makes something of no caption; its encoding starts a denoiser's null caption."""

    def unconditional(self, prompt: str = "") -> tuple[Tensor, Tensor]:
        """-> (S, D) float32 and mask (S,) bool, S = max_tokens, without what is put before captions."""
        ...


@runtime_checkable
class ClipSource(Protocol):
    """Clips addressed by a global index; the same index is always the same clip."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The clips of ``indices`` in that order; a bad clip is a hole of weight 0, never a shift."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Reads the attributes of a procedural clip off its pixels."""

    groups: Mapping[str, tuple[str, ...]]  # semantic / colour / texture / background -> attributes
    chance: Mapping[str, float]  # accuracy of guessing, per attribute
    weaknesses: Mapping[str, float]  # attributes it is known to read badly off clean clips, with accuracy

    def read(self, video: Tensor) -> dict[str, Tensor]:
        """(B, 3, 16 or 17, H, W) in [-1, 1] -> labels shaped like ``Batch.attributes``, -1 = unreadable."""
        ...

    def score(self, read: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per attribute (B,) accuracy in [0, 1], NaN where the attribute does not apply."""
        ...


@runtime_checkable
class Task(Protocol):
    """One thing to train. The training shell knows nothing else about it."""

    model: nn.Module  # all that trains, is averaged and is saved
    frozen: Sequence[nn.Module]  # used but never trained or saved; the shell moves and hashes them
    reads: Literal["pixels", "latents"]  # what its batches must hold

    def step(self, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        """Losses of shape (B,); ``loss`` is optimised, every key is logged."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: ``params``, and optionally ``lr_scale``, ``start_step``, ``warmup_steps``."""
        ...

    def export(self, directory: Path, train: ClipSource, heldout: ClipSource, record: dict[str, Any]) -> Any:
        """Measure the trained model on held-out clips and publish its weights and record in ``directory``."""
        ...


@runtime_checkable
class Encodes(Protocol):
    """A task that reads more of a clip than its latents: what its clips are encoded by, once."""

    encoder: Autoencoder
