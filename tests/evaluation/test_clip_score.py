"""The CLIP score with a small random CLIP: its scale, which frames it sees, what it says of long captions."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sana_train.evaluation.clip_score import ClipScore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scorer(tiny_clip: Path) -> ClipScore:
    return ClipScore(str(tiny_clip), CPU)


def clips(num: int, frames: int = 3) -> torch.Tensor:
    return torch.rand(num, 3, frames, 40, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_is_the_cosine_that_clip_itself_gives(tiny_clip: Path, scorer: ClipScore) -> None:
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip import CLIPImageProcessor

    video, caption = clips(1, frames=1), "a red cube"
    picture = ((video[0, :, 0] + 1) / 2 * 255).round().byte()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    text = AutoTokenizer.from_pretrained(tiny_clip)([caption], return_tensors="pt")
    with torch.no_grad():
        out = CLIPModel.from_pretrained(tiny_clip)(pixel_values=pixels, **text)
    expected = 100 * F.cosine_similarity(out.image_embeds, out.text_embeds).clamp_min(0)
    assert torch.allclose(scorer(video, [caption]), expected, atol=0.3)


def test_clips_are_scored_apart_and_by_their_own_caption(scorer: ClipScore) -> None:
    video, captions = clips(2), ["a red cube", "a blue disc"]
    both = scorer(video, captions)
    assert both.shape == (2,)
    assert ((both >= 0) & (both <= 100)).all()
    alone = [scorer(video[i : i + 1], [captions[i]]) for i in range(2)]
    assert torch.allclose(both, torch.cat(alone), atol=1e-4)
    swapped = scorer(video, captions[::-1])
    assert not torch.allclose(both, swapped, atol=1e-3)


def test_a_long_caption_is_told_what_it_loses(scorer: ClipScore, caplog: pytest.LogCaptureFixture) -> None:
    long = " ".join(["red"] * (scorer.max_tokens - 2) + ["blue", "disc"])
    with caplog.at_level(logging.WARNING):
        cut = scorer(clips(1), [long])
    assert "blue disc" in caplog.text
    short = " ".join(["red"] * (scorer.max_tokens - 2))
    assert torch.allclose(cut, scorer(clips(1), [short]), atol=1e-4)


def test_what_is_no_clip_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config.json at .*two_stage.clip=null"):
        ClipScore(str(tmp_path), CPU)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_clip / name).read_bytes())
    with pytest.raises(FileNotFoundError, match="no weights of CLIP"):
        ClipScore(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    with pytest.raises(ValueError, match="a model of type 'gemma2', not 'clip'"):
        ClipScore(str(tmp_path), CPU)
