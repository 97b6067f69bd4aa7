"""Encoded clips in memory give what encoding on the fly would give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sana_train.data import resident
from sana_train.data.resident import RaggedText, ResidentClips, encode_resident
from sana_train.types import Batch


@pytest.mark.parametrize("batch_size", [3, 10])
def test_batches_equal_online_encoding(
    squares: Any, block_means: Any, word_hashes: Any, batch_size: int
) -> None:
    autoencoders = {"one": block_means, "two": type(block_means)(gain=2.0)}
    clips = encode_resident(squares, autoencoders, word_hashes, "cpu", batch_size, dtype=torch.float32)
    indices = [7, 0, 7, 9]
    online = squares.batch(indices)
    context, mask = word_hashes.encode(online.captions)
    for name, autoencoder in autoencoders.items():
        assert len(clips[name]) == len(squares)
        batch = clips[name].batch(indices)
        assert batch.latents is not None
        assert batch.context is not None
        assert batch.context_mask is not None
        assert torch.allclose(batch.latents, autoencoder.encode(online.video), atol=1e-6)
        assert torch.equal(batch.context, context)
        assert torch.equal(batch.context_mask, mask)
        assert batch.captions == online.captions
        assert batch.index.tolist() == indices
        for attribute, value in online.attributes.items():
            assert torch.equal(batch.attributes[attribute], value)


@pytest.mark.parametrize(("clips_in_memory", "pieces"), [(1000, [10]), (7, [6, 4]), (0, [3, 3, 3, 1])])
def test_clips_are_read_in_larger_pieces_than_they_are_encoded(
    squares: Any,
    block_means: Any,
    word_hashes: Any,
    monkeypatch: pytest.MonkeyPatch,
    clips_in_memory: int,
    pieces: list[int],
) -> None:
    seen: dict[str, list[int]] = {"read": [], "encoded": [], "worded": []}

    def count(name: str, part: Any, method: str) -> None:
        original = getattr(part, method)
        monkeypatch.setattr(part, method, lambda given: seen[name].append(len(given)) or original(given))

    monkeypatch.setattr(resident, "_READ_AHEAD_BYTES", clips_in_memory * squares.clip(0).nbytes)
    count("read", squares, "batch")
    count("encoded", block_means, "encode")
    count("worded", word_hashes, "encode")
    encode_resident(squares, {"one": block_means}, word_hashes, "cpu", 3)
    assert seen["read"] == [1, *pieces]  # the first read tells how large a clip is
    assert seen["encoded"] == seen["worded"] == [3, 3, 3, 1]


def test_a_tensor_of_indices_is_as_good_as_a_list(squares: Any, block_means: Any, word_hashes: Any) -> None:
    clips = encode_resident(squares, {"one": block_means}, word_hashes, "cpu", 5)["one"]
    by_list, by_tensor = clips.batch([4, 2]), clips.batch(torch.tensor([4, 2]))
    assert by_list.latents is not None
    assert by_tensor.latents is not None
    assert torch.equal(by_list.latents, by_tensor.latents)
    assert by_list.captions == by_tensor.captions
    assert by_list.latents.dtype == torch.float32


def test_holes_stay_holes(squares: Any, block_means: Any, word_hashes: Any) -> None:
    class OneBad(type(squares)):  # type: ignore[misc]
        def batch(self, indices: Any) -> Batch:
            batch = super().batch(indices)
            return replace(batch, weight=(batch.index != 4).float())

    clips = encode_resident(OneBad(10), {"one": block_means}, word_hashes, "cpu", 4)["one"]
    assert clips.batch([3, 4, 5]).weight.tolist() == [1, 0, 1]


def test_source_without_pixels_is_refused(squares: Any, block_means: Any, word_hashes: Any) -> None:
    latents_only = encode_resident(squares, {"one": block_means}, word_hashes, "cpu", 5)["one"]
    assert isinstance(latents_only, ResidentClips)
    with pytest.raises(ValueError, match="ResidentClips gives no pixels"):
        encode_resident(latents_only, {"one": block_means}, word_hashes, "cpu", 5)


def test_text_of_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens expected from the lengths, got 4"):
        RaggedText(torch.zeros(4, 2), torch.tensor([2, 3]), max_tokens=3)
