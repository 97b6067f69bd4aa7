"""A null caption that starts afresh is the empty caption of the text encoder, where it has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sana_train.adaptation.latent_swap import LatentSwap
from sana_train.adaptation.null_caption import EmptyCaptionStart
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.protocols import ReadsEmptyCaptions
from sana_train.text.gemma2 import Gemma2TextEncoder
from sana_train.text.hashed import HashedTextEncoder

INSTRUCTION = Path(__file__).parents[2] / "data" / "prompts" / "sana_instruction.txt"
MAX_TOKENS, DIM = 12, 16  # the width of the tiny Gemma-2


def _dit(max_tokens: int = MAX_TOKENS) -> SanaVideoDiT:
    return SanaVideoDiT(4, [1, 1, 1], 1, 24, 2, 2, 2.0, DIM, max_tokens)


def test_scratch_starts_with_gemmas_empty_caption_without_the_instruction(tiny_gemma2: Path) -> None:
    def encoder(**settings) -> Gemma2TextEncoder:
        return Gemma2TextEncoder(str(tiny_gemma2), MAX_TOKENS, dtype="float32", **settings)

    with_all = encoder(instruction=str(INSTRUCTION), motion_score=10)
    plain = encoder()
    expected = plain.unconditional("")[0]
    for seed in (0, 1):
        model = _dit()
        start = EmptyCaptionStart(model, lambda: with_all.unconditional()[0])
        report = LatentSwap(["*"]).apply(start, None, seed)
        assert "null_context" in report.new
        torch.testing.assert_close(model.null_context, expected)
        own = model.fresh_state(["blocks.0.ffn.expand.weight"], seed)["blocks.0.ffn.expand.weight"]
        assert torch.equal(model.state_dict()["blocks.0.ffn.expand.weight"], own)
    bos_alone = plain.decoder(torch.tensor([[2]])).last_hidden_state[0, 0]  # truth from the decoder itself
    torch.testing.assert_close(model.null_context[0], bos_alone)


def test_a_declared_zero_and_a_loaded_null_caption_stay() -> None:
    def ask() -> torch.Tensor:
        raise AssertionError("an encoder of gigabytes is not built for nothing")

    source, model = _dit().state_dict(), _dit()
    LatentSwap(["patch_embed.*"]).apply(EmptyCaptionStart(model, ask), source, seed=0)
    assert torch.equal(model.null_context, source["null_context"])
    LatentSwap(["*"], zero=["null_context"]).apply(EmptyCaptionStart(model, ask), None, seed=0)
    assert (model.null_context == 0).all()


def test_without_an_empty_caption_the_models_own_rule_holds() -> None:
    assert not isinstance(HashedTextEncoder(), ReadsEmptyCaptions)
    start = EmptyCaptionStart(_dit(), lambda: None)
    own = _dit().fresh_state(["null_context"], 3)["null_context"]
    assert torch.equal(start.fresh_state(["null_context"], 3)["null_context"], own)


def test_another_length_is_named_with_the_keys_to_set() -> None:
    start = EmptyCaptionStart(_dit(max_tokens=20), lambda: torch.zeros(MAX_TOKENS, DIM))
    with pytest.raises(ValueError, match=r"12 tokens of width 16.*holds 20.*set model\.max_tokens=12"):
        start.fresh_state(["null_context"], 0)
