"""The bank: what is read from it is what was encoded, and it is encoded once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sana_train.data.bank import banked_clips
from sana_train.data.resident import ResidentClips
from sana_train.types import Batch


def test_the_second_process_reads_what_the_first_encoded(
    squares: Any, block_means: Any, word_hashes: Any, tmp_path: Path
) -> None:
    encoded = banked_clips(squares, block_means, word_hashes, tmp_path / "bank", "cpu", 4)
    squares.batch = None  # calling it would fail
    read = banked_clips(squares, block_means, word_hashes, tmp_path / "bank", "cpu", 4)
    first, second = encoded.batch([7, 0, 7]), read.batch([7, 0, 7])
    assert first.captions == second.captions
    for name in ("latents", "context", "context_mask", "weight"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for name, value in first.attributes.items():
        assert torch.equal(value, second.attributes[name])


def test_of_two_that_want_a_bank_at_once_one_encodes(
    squares: Any, block_means: Any, word_hashes: Any, tmp_path: Path
) -> None:
    class Slow(type(squares)):  # type: ignore[misc]
        def batch(self, indices: Sequence[int]) -> Batch:
            rendered.extend(indices)
            time.sleep(0.2)
            return super().batch(indices)

    def want() -> None:
        clips.append(banked_clips(Slow(10), block_means, word_hashes, tmp_path, "cpu", 16))

    rendered: list[int] = []
    clips: list[ResidentClips] = []
    ranks = [threading.Thread(target=want) for _ in range(2)]  # a lock of a file holds between threads too
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert rendered.count(9) == 1
    assert torch.equal(clips[0].latents, clips[1].latents)
