"""Turns, warm-up and what is timed, of autoencoders that keep a diary."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.evaluation.vae_bench import measure
from sana_train.evaluation.vae_bench.measure import measure_in_turns, random_clip
from sana_train.types import LatentSpec, VideoShape

VIDEO = VideoShape(2, 4, 4)
CPU = torch.device("cpu")


class Diarist(VideoAutoencoder):
    """By its own clock the first encoding of a turn takes 100 s, the second 1 s, decoding 5 s."""

    now_s = 0.0

    def __init__(self, name: str, diary: list[str]) -> None:
        super().__init__()
        self.name, self.diary = name, diary
        self.spec = LatentSpec(3, 1, 1, 1, "chunked")
        self.clips: list[Tensor] = []

    def encode(self, video: Tensor) -> Tensor:
        is_first = not self.diary or self.diary[-1] != f"{self.name} encode"
        Diarist.now_s += 100 if is_first else 1
        self.diary.append(f"{self.name} encode")
        self.clips.append(video)
        return video

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        Diarist.now_s += 5
        self.diary.append(f"{self.name} decode")
        return latents

    def statistics(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(3), torch.ones(3)

    def reset_parameters(self) -> None: ...


def test_all_take_turns_and_each_timed_pass_is_behind_an_untimed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: Diarist.now_s))
    diary: list[str] = []
    turns: list[int] = []
    pair = [Diarist("a", diary), Diarist("b", diary)]
    measured = measure_in_turns(pair, VIDEO, torch.float32, CPU, 2, 0, turns.append)
    turn = ["encode", "encode", "decode", "decode"]
    assert diary == [f"{name} {what}" for name in "abab" for what in turn]
    assert turns == [1, 1, 1, 1]
    for encodes, decodes in measured:
        assert encodes.seconds == [1.0, 1.0]
        assert decodes.seconds == [5.0, 5.0]
        assert encodes.peak is decodes.peak is None


def test_every_autoencoder_gets_the_same_clips_and_every_round_another() -> None:
    pair = [Diarist("a", []), Diarist("b", [])]
    measure_in_turns(pair, VIDEO, torch.bfloat16, CPU, 2, 3, lambda _: None)
    for ours, theirs in zip(pair[0].clips, pair[1].clips, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.bfloat16
    assert not torch.equal(pair[0].clips[0], pair[0].clips[2])


def test_random_clips_fill_the_range() -> None:
    clip = random_clip(VideoShape(8, 16, 16), torch.float32, CPU, 0, 0)
    assert clip.shape == (1, 3, 8, 16, 16)
    assert -1 <= clip.min() < -0.95
    assert 0.95 < clip.max() <= 1


@pytest.mark.gpu
def test_memory_is_that_of_one_alone() -> None:
    class Heavy(Diarist):
        def __init__(self, mib: int) -> None:
            super().__init__("heavy", [])
            self.register_buffer("weight", torch.zeros(mib * 2**18))

    gc.collect()
    torch.cuda.empty_cache()
    others = torch.cuda.memory_allocated() / 2**30  # what other tests of this process still hold
    others_reserved = torch.cuda.memory_reserved() / 2**30
    light, heavy = measure_in_turns(
        [Heavy(64), Heavy(512)], VIDEO, torch.float32, torch.device("cuda"), 2, 0, lambda _: None
    )
    assert light[0].peak is not None
    assert heavy[0].peak is not None
    assert 0.06 < light[0].peak.allocated_gib - others < 0.1
    assert 0.5 <= heavy[0].peak.allocated_gib - others < 0.55
    assert light[0].peak.reserved_gib - others_reserved < 0.2
