"""Clips kept as 8-bit pixels are the clips that were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from sana_train.data.pixels import ResidentPixels
from sana_train.types import Batch


def rounded(video: torch.Tensor) -> torch.Tensor:
    return ((video + 1) * 127.5).round() / 127.5 - 1


@pytest.mark.parametrize("batch_size", [3, 10, 64])
def test_batches_equal_the_source_up_to_eight_bits(squares: Any, batch_size: int) -> None:
    clips = ResidentPixels(squares, "cpu", batch_size)
    assert len(clips) == len(squares)
    indices = [7, 0, 7, 9]
    kept, source = clips.batch(indices), squares.batch(indices)
    assert kept.video is not None
    assert kept.video.dtype == torch.float32
    assert torch.allclose(kept.video, rounded(source.video), atol=1e-6)
    assert (kept.video - source.video).abs().max() <= 0.5 / 127.5 + 1e-6
    assert kept.captions == source.captions
    assert kept.index.tolist() == indices
    for name, value in source.attributes.items():
        assert torch.equal(kept.attributes[name], value)


def test_decoded_pixels_survive_exactly(squares: Any) -> None:
    """A clip that was 8-bit before comes back bit for bit, black and white included."""

    class EightBit(type(squares)):  # type: ignore[misc]
        def clip(self, index: int) -> torch.Tensor:
            values = torch.arange(256, dtype=torch.float32).repeat(3 * 9 * 4).reshape(3, 9, 32, 32)
            return values / 127.5 - 1.0

    kept = ResidentPixels(EightBit(4), "cpu").batch([2]).video
    assert kept is not None
    assert torch.equal(kept[0], EightBit(4).clip(2))
    assert kept.min() == -1.0
    assert kept.max() == 1.0


def test_values_past_the_range_are_clamped(squares: Any) -> None:
    class TooBright(type(squares)):  # type: ignore[misc]
        def clip(self, index: int) -> torch.Tensor:
            return super().clip(index) * 0 + (1.5 if index else -1.5)

    video = ResidentPixels(TooBright(2), "cpu").batch([0, 1]).video
    assert video is not None
    assert torch.equal(video[0], torch.full_like(video[0], -1.0))
    assert torch.equal(video[1], torch.full_like(video[1], 1.0))


def test_cells_are_kept_where_the_source_has_them(squares: Any) -> None:
    assert ResidentPixels(squares, "cpu").batch([0]).cells is None

    class WithCells(type(squares)):  # type: ignore[misc]
        def batch(self, indices: Sequence[int]) -> Batch:
            batch = super().batch(indices)
            cells = (batch.index % 9 - 1).view(-1, 1, 1, 1).expand(-1, 9, 4, 4)
            return replace(batch, cells=cells)

    source = WithCells(12)
    kept = ResidentPixels(source, "cpu", 5)
    assert kept.cells is not None
    assert kept.cells.dtype == torch.int8
    cells = kept.batch([9, 2]).cells
    assert cells is not None
    assert cells.dtype == torch.int64
    assert torch.equal(cells, source.batch([9, 2]).cells)


def test_holes_stay_holes_and_shift_nothing(squares: Any) -> None:
    class OneBad(type(squares)):  # type: ignore[misc]
        def batch(self, indices: Sequence[int]) -> Batch:
            batch = super().batch(indices)
            return replace(batch, weight=(batch.index != 4).float())

    clips = ResidentPixels(OneBad(10), "cpu", 3)
    batch = clips.batch([3, 4, 5])
    assert batch.weight.tolist() == [1.0, 0.0, 1.0]
    assert batch.video is not None
    assert torch.allclose(batch.video[2], rounded(squares.clip(5)), atol=1e-6)


def test_what_cannot_be_kept_is_refused(squares: Any) -> None:
    with pytest.raises(ValueError, match="holds no clips"):
        ResidentPixels(type(squares)(0), "cpu")

    class NoPixels(type(squares)):  # type: ignore[misc]
        def batch(self, indices: Sequence[int]) -> Batch:
            return replace(super().batch(indices), video=None)

    with pytest.raises(ValueError, match="gives no pixels"):
        ResidentPixels(NoPixels(3), "cpu")
