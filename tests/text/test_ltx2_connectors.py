"""LTX-2's text side against diffusers' own pipeline, on tiny random weights, and the cache of prompts."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sana_train.protocols import TextEncoder
from sana_train.text.ltx2_connectors import LTX2ConnectorsTextEncoder
from sana_train.text.prompt_cache import PromptCache, read_prompts

PROMPTS = ["a red cube drifts left", "a blue disc above a red cube", "cube"]
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def folder(tiny_ltx2_text: Path) -> Path:
    return tiny_ltx2_text


@pytest.fixture(scope="module")
def encoder(folder: Path) -> LTX2ConnectorsTextEncoder:
    return LTX2ConnectorsTextEncoder(str(folder), MAX_TOKENS, "float32")


def test_both_streams_are_those_of_diffusers(folder: Path, encoder: LTX2ConnectorsTextEncoder) -> None:
    from diffusers.pipelines.ltx2 import LTX2Pipeline, LTX2TextConnectors
    from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

    parts = SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=Gemma3ForConditionalGeneration.from_pretrained(folder / "text_encoder"),
        _execution_device=torch.device("cpu"),
    )
    connectors = LTX2TextConnectors.from_pretrained(folder / "connectors")
    with torch.no_grad():
        hidden, tokens = LTX2Pipeline._get_gemma_prompt_embeds(parts, PROMPTS, max_sequence_length=MAX_TOKENS)  # type: ignore[arg-type]
        video, audio, mask = connectors(hidden, tokens, padding_side="left")
    ours = encoder.embed(PROMPTS)
    torch.testing.assert_close(ours.video, video, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.audio, audio, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.mask, mask.bool())
    assert ours.mask.all()  # registers stand in for the padding
    assert ours.video.shape == (3, MAX_TOKENS, encoder.dim)
    assert ours.audio.shape == (3, MAX_TOKENS, encoder.audio_dim)
    assert not torch.allclose(ours.video[0], ours.video[1], atol=1e-2)


def test_a_prompts_embedding_does_not_depend_on_its_neighbours(encoder: LTX2ConnectorsTextEncoder) -> None:
    together = encoder.embed(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(encoder.embed([f" {prompt}\n"]).video[0], together.video[row])


def test_it_is_a_text_encoder_of_the_video_stream(encoder: LTX2ConnectorsTextEncoder) -> None:
    assert isinstance(encoder, TextEncoder)
    context, mask = encoder.encode(PROMPTS[:1])
    assert torch.equal(context, encoder.embed(PROMPTS[:1]).video)
    assert context.shape == (1, encoder.max_tokens, encoder.dim)
    assert mask.dtype == torch.bool
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_fingerprint_follows_what_the_embeddings_depend_on(
    folder: Path, encoder: LTX2ConnectorsTextEncoder, tmp_path: Path
) -> None:
    assert (
        LTX2ConnectorsTextEncoder(str(folder), MAX_TOKENS, "float32").fingerprint() == encoder.fingerprint()
    )
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "connectors" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["video_connector.learnable_registers"][0, 0] += 1
    save_file(tensors, file)
    prints = {
        encoder.fingerprint(),
        LTX2ConnectorsTextEncoder(str(folder), 2 * MAX_TOKENS, "float32").fingerprint(),
        LTX2ConnectorsTextEncoder(str(folder), MAX_TOKENS, "bfloat16").fingerprint(),
        LTX2ConnectorsTextEncoder(str(other), MAX_TOKENS, "float32").fingerprint(),
    }
    assert len(prints) == 4


def test_a_long_prompt_is_cut_with_a_warning(
    encoder: LTX2ConnectorsTextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    long = " ".join(["red"] * (MAX_TOKENS + 4) + ["cube"])
    with caplog.at_level(logging.WARNING):
        cut = encoder.embed([long])
    assert "loses its last" in caplog.text
    assert "cube': 'red red" in caplog.text  # what was cut, and of which prompt
    assert cut.video.shape[1] == MAX_TOKENS


def test_bad_input_is_refused(folder: Path, encoder: LTX2ConnectorsTextEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt 1 of 2 says nothing"):
        encoder.embed(["a cube", "  "])
    with pytest.raises(ValueError, match=r"the single string 'a cube'"):
        encoder.embed("a cube")
    with pytest.raises(ValueError, match=r"max_tokens=12: expected a multiple of the video stream's 8"):
        LTX2ConnectorsTextEncoder(str(folder), 12)
    with pytest.raises(FileNotFoundError, match=r"no folder tokenizer in .*Lightricks/LTX-2"):
        LTX2ConnectorsTextEncoder(str(tmp_path))
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "connectors" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["video_connector.learnable_registers"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"1 missing keys \(such as video_connector.learnable_registers\)"):
        LTX2ConnectorsTextEncoder(str(other), MAX_TOKENS)
    file.write_bytes(b"cut")
    with pytest.raises((ValueError, FileNotFoundError), match=str(other)):
        LTX2ConnectorsTextEncoder(str(other), MAX_TOKENS)


def test_a_prompt_file_is_read_without_notes_and_repeats(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("# two\n\n a cube \na disc\na cube\n")
    assert read_prompts(file) == ["a cube", "a disc"]
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(file)
    with pytest.raises(FileNotFoundError, match="expected a text file"):
        read_prompts(tmp_path / "q.txt")


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no cached prompts.*--prompts FILE"):
        PromptCache(tmp_path, "x")
