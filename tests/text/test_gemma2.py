"""Gemma-2 captions against diffusers' SANA-Video pipeline, on a tiny random Gemma-2 and tokenizer."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sana_train.protocols import TextEncoder
from sana_train.text.gemma2 import Gemma2TextEncoder

INSTRUCTION = Path(__file__).parents[2] / "data" / "prompts" / "sana_instruction.txt"
SHORT = "a red cube drifts left"
LONG = " ".join(f"{colour} {shape} above" for colour in ("red", "blue") for shape in ("cube", "disc") * 9)
MAX_TOKENS = 30


@pytest.fixture(scope="module")
def folder(tiny_gemma2: Path) -> Path:
    return tiny_gemma2


@pytest.fixture(scope="module")
def pipeline(folder):
    """diffusers' pipeline with nothing but its text side, built as NVlabs and diffusers build it."""
    from diffusers import SanaVideoPipeline
    from transformers import AutoModelForCausalLM, AutoTokenizer

    decoder = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_decoder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return SanaVideoPipeline(tokenizer, decoder, vae=None, transformer=None, scheduler=None)


def build(folder: Path, **settings) -> Gemma2TextEncoder:
    given = {"max_tokens": MAX_TOKENS, "instruction": str(INSTRUCTION), "dtype": "float32", **settings}
    return Gemma2TextEncoder(str(folder), **given)


def of_diffusers(pipeline, captions: list[str], instruction: str, max_tokens: int = MAX_TOKENS):
    """(context, mask, null context, null mask) of ``SanaVideoPipeline.encode_prompt``."""
    return pipeline.encode_prompt(
        captions,
        do_classifier_free_guidance=True,
        negative_prompt="",
        device="cpu",
        max_sequence_length=max_tokens,
        complex_human_instruction=instruction.split("\n") if instruction else None,
    )


@pytest.mark.parametrize("instruction", [None, str(INSTRUCTION)], ids=["plain", "instruction"])
@pytest.mark.parametrize("captions", [[SHORT], [LONG], [SHORT, LONG, "cube"]], ids=["short", "long", "mixed"])
def test_context_and_mask_are_those_of_diffusers(folder, pipeline, captions, instruction):
    encoder = build(folder, instruction=instruction)
    context, mask = encoder.encode(captions)
    theirs, their_mask, *_ = of_diffusers(pipeline, captions, encoder.instruction)
    assert torch.equal(mask, their_mask.bool())
    torch.testing.assert_close(context[mask], theirs[mask], rtol=1e-5, atol=1e-5)
    assert (context[~mask] == 0).all()
    assert context.shape == (len(captions), MAX_TOKENS, encoder.dim)
    assert (context.dtype, mask.dtype) == (torch.float32, torch.bool)


def test_at_sanas_own_length_too(folder, pipeline):
    encoder = build(folder, max_tokens=300)
    captions = [SHORT, " ".join([LONG] * 4)]  # the second is longer than 300 tokens
    context, mask = encoder.encode(captions)
    theirs, their_mask, *_ = of_diffusers(pipeline, captions, encoder.instruction, 300)
    assert mask.sum(dim=1).tolist() == [6, 300]
    assert torch.equal(mask, their_mask.bool())
    torch.testing.assert_close(context[mask], theirs[mask], rtol=1e-5, atol=1e-5)


def test_what_is_kept_is_bos_and_the_caption_seen_behind_the_instruction(folder):
    """Truth from the decoder itself, on exactly the tokens of one text and without padding."""
    encoder = build(folder)
    ids = encoder._tokenizer(encoder.instruction + SHORT)["input_ids"]
    num_caption = len(encoder._tokenizer(" " + SHORT)["input_ids"]) - 1
    assert encoder._tokenizer.decode(ids[-num_caption:]).strip() == SHORT
    hidden = encoder.decoder(torch.tensor([ids])).last_hidden_state[0]
    context, mask = encoder.encode([SHORT])
    expected = torch.cat([hidden[:1], hidden[-num_caption:]])
    torch.testing.assert_close(context[0, mask[0]], expected, rtol=1e-5, atol=1e-5)
    without = build(folder, instruction=None).encode([SHORT])[0]
    assert not torch.allclose(context[0, 1], without[0, 1], atol=1e-2)


def test_unconditional_is_diffusers_negative_prompt_padding_included(folder, pipeline):
    encoder = build(folder, motion_score=10)
    context, mask = encoder.unconditional()
    *_, theirs, their_mask = of_diffusers(pipeline, [SHORT], encoder.instruction)
    assert torch.equal(mask, their_mask[0].bool())
    assert mask.sum() == 1
    torch.testing.assert_close(context, theirs[0], rtol=1e-5, atol=1e-5)
    assert (context[1:].abs().sum(dim=1) > 0).all()
    assert not torch.equal(encoder.unconditional("blurry")[0], context)


def test_capitals_count_and_outer_white_space_does_not(folder):
    encoder = build(folder)
    (plain, capital, spaced), _ = encoder.encode([SHORT, SHORT.capitalize(), f"  {SHORT}\n"])
    assert torch.equal(plain, spaced)
    assert not torch.equal(plain, capital)


def test_encoding_does_not_depend_on_neighbours_in_the_batch(folder):
    encoder = build(folder)
    together, mask = encoder.encode([SHORT, LONG])
    for i, caption in enumerate([SHORT, LONG]):
        alone, alone_mask = encoder.encode([caption])
        assert torch.equal(alone_mask[0], mask[i])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)


def test_motion_score_is_text_behind_captions_that_have_none(folder):
    plain, scored = build(folder), build(folder, motion_score=7)
    for caption in (SHORT, f" {SHORT} "):
        expected = plain.encode([f"{SHORT} motion score: 7."])
        assert all(map(torch.equal, scored.encode([caption]), expected))
    own = f"{SHORT} motion score: 12."
    assert all(map(torch.equal, scored.encode([own]), plain.encode([own])))


def test_what_is_cut_is_said_at_the_first_and_at_every_doubling(folder, caplog):
    encoder = build(folder, motion_score=10)
    num_tokens = len(encoder._tokenizer(f" {LONG} motion score: 10.")["input_ids"])
    with caplog.at_level(logging.WARNING):
        encoder.encode([SHORT])
        assert caplog.records == []
        _, mask = encoder.encode([SHORT, LONG])
        encoder.encode([LONG])
    assert mask[1].all()
    (record,) = caplog.records
    message = record.getMessage()
    assert "do not fit into 30 tokens lose their end, motion score included: 1 so far" in message
    assert "'red cube above red disc above" in message
    assert f"by {num_tokens - MAX_TOKENS} tokens, '" in message
    assert message.split("tokens, '")[1].startswith(LONG.split()[-1]) or "motion score: 10.'" in message
    caplog.clear()
    for i in range(2, 10):
        encoder.encode([f"{LONG} {i}", LONG])
    assert [record.args[2] for record in caplog.records] == [2, 4, 8]


def test_a_caption_that_just_fits_is_not_cut(folder, caplog):
    encoder = build(folder)
    with caplog.at_level(logging.WARNING):
        full = encoder.encode([" ".join(["cube"] * (MAX_TOKENS - 1))])[1]
        assert caplog.records == []
        encoder.encode([" ".join(["cube"] * MAX_TOKENS)])
    assert full.all()
    assert "by 1 tokens" in caplog.text


def test_it_is_a_frozen_text_encoder_with_few_precisions(folder):
    encoder = build(folder, dtype="bfloat16")
    assert isinstance(encoder, TextEncoder)
    assert encoder.dim == 16
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    context, mask = encoder.encode([SHORT])
    assert context.dtype == torch.float32
    exact, _ = build(folder).encode([SHORT])
    error = (context - exact)[mask].norm() / exact[mask].norm()
    assert 0 < error < 0.05


def test_autocast_changes_nothing(folder):
    encoder = build(folder)
    expected, _ = encoder.encode([SHORT])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode([SHORT])[0], expected)


def test_the_flow_task_keeps_it_out_of_what_trains(folder):
    from sana_train.flow.time_sampling import LogitNormal
    from sana_train.training.tasks.flow import FlowTask

    encoder, model = build(folder), torch.nn.Linear(2, 2)
    task = FlowTask(model, [], torch.nn.Identity(), encoder, LogitNormal(), 0.1, "none")  # type: ignore[arg-type]
    assert any(module is encoder for module in task.frozen)
    ours = {id(parameter) for parameter in encoder.parameters()}
    assert ours.isdisjoint(id(parameter) for parameter in task.model.parameters())


def test_fingerprint_tells_apart_all_that_changes_the_context(folder, tmp_path):
    other_weights = shutil.copytree(folder, tmp_path / "weights")
    state = load_file(other_weights / "model.safetensors")
    state["model.norm.weight"][0] += 1.0
    save_file(state, other_weights / "model.safetensors", metadata={"format": "pt"})
    other_tokenizer = shutil.copytree(folder, tmp_path / "tokenizer")
    description = json.loads((other_tokenizer / "tokenizer.json").read_text())
    description["model"]["merges"].pop()
    (other_tokenizer / "tokenizer.json").write_text(json.dumps(description))
    wording = tmp_path / "wording.txt"
    wording.write_text(INSTRUCTION.read_text().replace("image generation", "video generation"))
    encoders = [
        build(folder),
        build(folder, max_tokens=31),
        build(folder, motion_score=10),
        build(folder, dtype="bfloat16"),
        build(folder, instruction=None),
        build(folder, instruction=str(wording)),
        build(other_weights),
        build(other_tokenizer),
    ]
    fingerprints = [encoder.fingerprint() for encoder in encoders]
    assert len(set(fingerprints)) == len(encoders)
    before = encoders[0].fingerprint()
    encoders[0].encode([SHORT, LONG])  # using it must not change it
    assert encoders[0].fingerprint() == before == build(folder).fingerprint()


def test_a_diffusers_pipeline_folder_in_shards_is_the_same_encoder(folder, pipeline, tmp_path):
    pipeline.text_encoder.save_pretrained(tmp_path / "text_encoder", max_shard_size="16KB")
    assert len(list((tmp_path / "text_encoder").glob("model-*.safetensors"))) > 1
    pipeline.tokenizer.save_pretrained(tmp_path / "tokenizer")
    ours, theirs = build(folder), build(tmp_path)
    assert torch.equal(ours.encode([SHORT])[0], theirs.encode([SHORT])[0])


@pytest.mark.parametrize("caption", ["", " \n"])
def test_a_caption_of_nothing_is_refused(folder, caption):
    with pytest.raises(ValueError, match=r"caption 1 of 2 is .*says nothing.*null context"):
        build(folder, motion_score=10).encode([SHORT, caption])


def test_a_bare_string_is_refused(folder):
    with pytest.raises(ValueError, match="sequence of captions"):
        build(folder).encode(SHORT)


def test_a_missing_folder_or_part_of_it_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json at .*nowhere .*gemma-2-2b-it"):
        build(tmp_path / "nowhere")
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        partial = shutil.copytree(folder, tmp_path / name)
        (partial / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"(?s){name}.*Efficient-Large-Model/gemma-2-2b-it"):
            build(partial)


def test_files_of_something_else_are_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ValueError, match="type 'llama', not 'gemma2'"):
        build(other)

    fewer = shutil.copytree(folder, tmp_path / "fewer")
    state = load_file(fewer / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, fewer / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights in .* are missing.*\(such as norm.weight\)"):
        build(fewer)

    misshapen = shutil.copytree(folder, tmp_path / "misshapen")
    state = load_file(misshapen / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"][:8].clone()
    save_file(state, misshapen / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights in .* of another shape \(such as norm.weight\)"):
        build(misshapen)

    truncated = shutil.copytree(folder, tmp_path / "truncated")
    data = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cannot be read .*fetch them again"):
        build(truncated)


def test_a_tokenizer_without_bos_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}))
    description = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps({**description, "post_processor": None}))
    with pytest.raises(ValueError, match=r"begins a text with token .*needs bos"):
        build(other)


@pytest.mark.parametrize("settings", [{"max_tokens": 1}, {"motion_score": 0}, {"dtype": "float16"}])
def test_impossible_settings_are_refused(folder, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        build(folder, **settings)
