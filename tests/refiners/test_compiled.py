"""``kernels=compiled`` is the plain path with less work: same velocities, same keys, fewer rotations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sana_train.refiners.compiled import needed_mask
from sana_train.refiners.ltx2 import LTX2Refiner
from sana_train.refiners.primed import PrimedRotation
from sana_train.text.prompt_cache import PromptEmbeddings
from tests.refiners.test_ltx2 import GRID, latents, noise, prompts, tiny


def compiled(backend: str = "eager", **changes: Any) -> LTX2Refiner:
    """Traced as ever, but by default run without generated code, which takes a CPU minutes to make."""
    refiner = tiny(**changes, kernels="compiled")
    for block in refiner.transformer.transformer_blocks:
        block.compile(dynamic=False, backend=backend)
    return refiner


def pair(**changes: Any) -> tuple[LTX2Refiner, LTX2Refiner]:
    return tiny(**changes), compiled(**changes)


def ragged(num: int = 2) -> PromptEmbeddings:
    text = prompts(num)
    mask = text.mask.clone()
    mask[0, 5:] = False
    return replace(text, mask=mask)


@pytest.mark.parametrize("text", [prompts(), ragged()], ids=["all-ones", "ragged"])
@pytest.mark.parametrize("audio", ["zero_noised", "isolated", "none"])
def test_refined_latents_are_those_of_the_plain_path(audio: Any, text: PromptEmbeddings) -> None:
    plain, fast = pair(audio=audio)
    given = latents()
    expected = plain.refine(given, text, *noise(plain, given)).values
    found = fast.refine(given, text, *noise(fast, given)).values
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5
    assert plain.state_dict().keys() == fast.state_dict().keys()


@pytest.mark.slow
def test_generated_code_gives_the_same_latents_and_gradients() -> None:
    plain, fast = tiny(), compiled("inductor")
    given = latents()
    expected = plain.refine(given, prompts(), *noise(plain, given)).values
    found = fast.refine(given, prompts(), *noise(fast, given)).values
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5
    torch.testing.assert_close(*(gradient(refiner) for refiner in (fast, plain)), rtol=1e-3, atol=1e-6)


def test_blocks_have_no_graph_breaks_and_are_compiled_once() -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    fast, given = compiled(), latents()
    fast.refine(given, prompts(), *noise(fast, given))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1  # of two blocks and three evaluations


def test_rotations_are_computed_once_a_walk_and_again_for_another_frame_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, fast = pair()
    computed: list[Tensor] = []
    for name in ("rope", "audio_rope", "cross_attn_rope", "cross_attn_audio_rope"):
        kept = getattr(fast.transformer, name)
        assert isinstance(kept, PrimedRotation)
        real = kept.rotation.forward

        def counted(coords: Tensor, device: Any = None, real: Any = real) -> Any:
            computed.append(coords)
            return real(coords, device=device)

        monkeypatch.setattr(kept.rotation, "forward", counted)
    for fps, total in ((16.0, 4), (16.0, 4), (24.0, 8), (16.0, 12)):
        given = latents(fps=fps)
        found = fast.refine(given, prompts(), *noise(fast, given)).values
        expected = plain.refine(given, prompts(), *noise(plain, given)).values
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert len(computed) == total


def gradient(refiner: LTX2Refiner) -> Tensor:
    video = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(5)).requires_grad_()
    audio = torch.randn(2, 27, 16, generator=torch.Generator().manual_seed(6))
    moved, _ = refiner.velocities(video, audio, torch.full((2,), 0.7), prompts(), GRID, 16.0)
    moved.square().mean().backward()
    assert video.grad is not None
    return video.grad


def test_gradients_pass_through_the_kept_rotations() -> None:
    """A refiner that is trained calls ``velocities`` itself, after evaluations without gradients."""
    plain, fast = pair()
    given = latents()
    fast.refine(given, prompts(), *noise(fast, given))
    torch.testing.assert_close(gradient(fast), gradient(plain), rtol=1e-4, atol=1e-7)


def test_only_a_mask_that_leaves_something_out_is_needed() -> None:
    assert needed_mask(prompts().mask) is None
    mask = ragged().mask
    assert needed_mask(mask) is mask
