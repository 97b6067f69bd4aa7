"""The table is green on sound files, and each row is red when its file is made wrong on purpose."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sana_train.autoencoders.ltx2 import LTX2VideoAutoencoder
from sana_train.autoencoders.weights import save_autoencoder
from sana_train.cli import verify
from sana_train.cli.checks import Row
from sana_train.cli.convert import TOLERANCE, our_velocity, relative_difference
from sana_train.cli.diffusers_dit import write_config
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import REPOSITORY, compose_config, load
from sana_train.models.checkpoint import write_diffusers, write_nvlabs
from tests.models.conftest import SIZES, build

DIT, MEAN, STD = "source DiT forward", "latent mean of clips", "latent std of clips"
PSNR, VOCABULARY, TEXT = "reconstruction of clips", "text vocabulary", "text encoder forward"
MODEL = [f"model.{key}={value}".replace(" ", "") for key, value in SIZES.items()]
SOURCE = [f"source {name}" for name in (MEAN, STD, PSNR)]
NO_SOURCE = ["~source", "~adaptation"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a few held-out clips, rendered once."""
    data = tmp_path_factory.mktemp("data")
    return ["data.heldout.source.num_clips=4", f"paths.data={data}"]


@pytest.fixture
def files(tmp_path: Path, tiny_gemma2: Path, clips: list[str]) -> Path:
    """A DiT as NVlabs saves it, the shipped autoencoder, a Gemma-2, and a pipeline of DiT and Gemma-2."""
    state = build().state_dict()
    write_nvlabs(state, tmp_path / "sana.pth")
    shutil.copytree(REPOSITORY / "data" / "tiny" / "ltx2", tmp_path / "ltx2")
    shutil.copytree(REPOSITORY / "data" / "tiny" / "dcae_v", tmp_path / "dcae_v")
    shutil.copytree(tiny_gemma2, tmp_path / "gemma")
    pipeline = tmp_path / "pipeline"
    write_diffusers(state, pipeline / "transformer")
    write_config(build(), pipeline / "transformer")
    shutil.copytree(tiny_gemma2, pipeline / "text_encoder")
    shutil.copytree(tiny_gemma2, pipeline / "tokenizer")
    return tmp_path


def dit(files: Path) -> list[str]:
    source = [f"source.checkpoint={files / 'sana.pth'}", "source.autoencoder.weights=null"]
    return [*MODEL, *source, "~source.model.latent_channels"]


def source_autoencoder(files: Path) -> list[str]:
    return [f"source.autoencoder.weights={files / 'dcae_v'}"]


def autoencoder(files: Path) -> list[str]:
    return [f"autoencoder.weights={files / 'ltx2'}"]


def text(files: Path) -> list[str]:
    return ["text=gemma2", f"text.weights={files / 'gemma'}", "text.max_tokens=30"]


def rows(overrides: Sequence[str], diffusers: Path | None = None) -> dict[str, Row]:
    found = verify.verify(overrides, None if diffusers is None else str(diffusers))
    return {row.check: row for row in found}


def states(found: dict[str, Row]) -> dict[str, str]:
    return {name: row.state for name, row in found.items() if row.state != "skipped"}


def change(file: Path, key: str, new: Callable[[Tensor], Tensor]) -> None:
    """One tensor of a weight file, as a bad copy or a mixed-up version has it."""
    if file.suffix == ".pth":
        content = torch.load(file, weights_only=True)
        content["state_dict"][key] = new(content["state_dict"][key])
        torch.save(content, file)
        return
    tensors = load_file(file)
    tensors[key] = new(tensors[key])
    save_file(tensors, file, metadata={"format": "pt"})


def save_changed_autoencoder(files: Path, spoil: Callable[[LTX2VideoAutoencoder], None]) -> None:
    """The shipped autoencoder with something wrong and a fingerprint that fits it."""
    node = load(compose_config(autoencoder(files))).autoencoder
    assert node is not None
    model = instantiate(node)
    with torch.no_grad():
        spoil(model)
    save_autoencoder(model, files / "ltx2", {})


@pytest.mark.parametrize("against_pipeline", [False, True])
def test_sound_files_are_all_green(
    files: Path, clips: list[str], against_pipeline: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--diffusers", str(files / "pipeline")] if against_pipeline else []
    report = files / "verify.json"
    words = [*dit(files), *autoencoder(files), *source_autoencoder(files), *text(files), *clips]
    verify.main(["--json", str(report), *options, *words])
    found = {row["check"]: row for row in json.loads(report.read_text())["rows"]}
    assert {name: row["state"] for name, row in found.items()} == dict.fromkeys(
        [DIT, MEAN, STD, PSNR, *SOURCE, VOCABULARY, TEXT], "green"
    )
    assert 0 <= found[DIT]["number"] <= 1e-5
    assert 1.0 <= found[STD]["number"] < 1.3
    assert 25.0 < found[PSNR]["number"] < 45.0
    table = capsys.readouterr().out
    assert table.count("green") == 9
    assert f"{found[PSNR]['number']:.3g}" in table and ">= 20 dB" in table
    assert max(map(len, table.splitlines())) <= 100


def test_a_perturbed_weight_of_the_dit_is_seen_beside_the_pipeline(files: Path) -> None:
    change(files / "sana.pth", "blocks.1.attn.qkv.weight", lambda value: value * 1.01)
    overrides = [*dit(files), "autoencoder.weights=null"]
    assert states(rows(overrides, files / "pipeline")) == {DIT: "red"}
    assert states(rows(overrides)) == {DIT: "green"}  # of itself a file does not know that


def test_other_precisions_of_the_same_weights_are_no_difference(files: Path) -> None:
    for file in (files / "pipeline").glob("transformer/diffusion*.safetensors"):
        save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file, {"format": "pt"})
    assert states(rows([*dit(files), "autoencoder.weights=null"], files / "pipeline")) == {DIT: "green"}


def test_a_dit_that_computes_no_numbers_is_red(files: Path) -> None:
    change(files / "sana.pth", "final_layer.linear.bias", lambda value: value * math.nan)
    with pytest.raises(SystemExit) as end:
        verify.main([*dit(files), "autoencoder.weights=null", "--json", str(files / "verify.json")])
    assert end.value.code == 1
    row = json.loads((files / "verify.json").read_text())["rows"][0]
    assert (row["state"], row["number"]) == ("red", "nan")


def test_a_diffusers_folder_is_taken_as_it_is_with_its_own_config(files: Path) -> None:
    folder = files / "pipeline"
    (folder / "transformer" / "null_context.safetensors").unlink()  # as published
    overrides = [*dit(files), f"source.checkpoint={folder}", "autoencoder.weights=null"]
    assert states(rows(overrides)) == {DIT: "green"}
    config = json.loads((folder / "transformer" / "config.json").read_text())
    config.update(num_attention_heads=4, attention_head_dim=12)
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    row = rows(overrides)[DIT]
    assert row.state == "red"
    assert "num_heads 4 against 2" in row.note


def test_damaged_files_and_missing_ones_are_red_with_the_reason(
    files: Path, clips: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = (files / "sana.pth").read_bytes()
    (files / "sana.pth").write_bytes(data[: len(data) // 2])
    change(files / "ltx2" / "model.safetensors", "vae.decoder.conv_in.conv.weight", lambda value: value * 1.1)
    shutil.rmtree(files / "gemma")
    shutil.rmtree(files / "dcae_v")
    words = [*dit(files), *autoencoder(files), *source_autoencoder(files), *text(files), *clips]
    with pytest.raises(SystemExit) as end:
        verify.main(words)
    assert end.value.code == 1
    table = capsys.readouterr().out
    assert "green" not in table
    assert f"{DIT}: {files / 'sana.pth'} is damaged or incomplete" in table
    assert f"{MEAN}, {STD}, {PSNR}: {files / 'ltx2' / 'model.safetensors'} has fingerprint" in table
    missing = f"source.autoencoder.weights={files / 'dcae_v'} is not on this machine"
    assert f"{', '.join(SOURCE)}: {missing}" in table
    assert f"{VOCABULARY}, {TEXT}: text.weights={files / 'gemma'} is not on this machine" in table


def test_wrong_statistics_are_red_in_their_own_row(files: Path, clips: list[str]) -> None:
    overrides = [*NO_SOURCE, *autoencoder(files), *clips]

    def move(model: LTX2VideoAutoencoder) -> None:
        model.statistics()[0].add_(model.statistics()[1])

    save_changed_autoencoder(files, move)
    found = rows(overrides)
    assert states(found) == {MEAN: "red", STD: "green", PSNR: "green"}
    assert found[MEAN].number == pytest.approx(1.0, abs=0.1)
    shutil.copytree(REPOSITORY / "data" / "tiny" / "ltx2", files / "ltx2", dirs_exist_ok=True)

    def scale(model: LTX2VideoAutoencoder) -> None:
        model.statistics()[1].mul_(2.0)

    save_changed_autoencoder(files, scale)
    assert states(rows(overrides)) == {MEAN: "green", STD: "red", PSNR: "green"}


@pytest.mark.parametrize(("scale", "state"), [(1.0, "green"), (2.0, "red")])
def test_one_scale_for_all_channels_is_held_against_all_of_them_together(
    files: Path, clips: list[str], scale: float, state: str
) -> None:
    def spread_channels(model: LTX2VideoAutoencoder) -> None:
        head, (mean, std) = model.vae.encoder.conv_out.conv, model.statistics()
        head.weight[:64].mul_(4.0)
        head.bias[:64].mul_(4.0)
        std[:64].mul_(4.0)
        std.fill_(std.square().mean().sqrt().item() * scale)
        mean.zero_()

    save_changed_autoencoder(files, spread_channels)
    found = rows([*NO_SOURCE, *autoencoder(files), *clips])
    assert (found[MEAN].state, found[STD].state) == ("green", state)
    assert "taken together" in found[STD].note


def test_a_perturbed_decoder_is_red_in_reconstruction_alone(files: Path, clips: list[str]) -> None:
    def spoil(model: LTX2VideoAutoencoder) -> None:
        model.vae.decoder.conv_in.conv.weight.mul_(-1.0)

    save_changed_autoencoder(files, spoil)
    found = rows([*NO_SOURCE, *autoencoder(files), *clips])
    assert states(found) == {MEAN: "green", STD: "green", PSNR: "red"}


def test_a_cut_decoder_of_the_source_is_red_before_a_run_needs_it(files: Path, clips: list[str]) -> None:
    weights = files / "dcae_v" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    found = rows([*dit(files), *autoencoder(files), *source_autoencoder(files), *clips])
    assert {name: found[name].state for name in SOURCE} == dict.fromkeys(SOURCE, "red")
    assert found[MEAN].state == "green"
    assert str(weights) in found[SOURCE[0]].note


def test_without_clips_their_rows_are_skipped_with_the_reason(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = ["data=shards", f"data.heldout.path={files / 'empty'}"]
    words = [*dit(files), *autoencoder(files), *source_autoencoder(files), *empty]
    verify.main(words)  # nothing red: no exit
    reason = f"no *.tar shards in {files / 'empty'}, which is not there; give clips of your own in shards"
    assert (
        f"{', '.join([MEAN, STD, PSNR, *SOURCE])}: {reason}" in capsys.readouterr().out
    )  # in one piece, to be copied
    found = rows(words)
    assert states(found) == {DIT: "green"}
    assert found[PSNR].note.startswith(reason)
    assert "HashedTextEncoder has no counterpart" in found[TEXT].note
    spec = files / "dcae_v" / "spec.json"
    spec.write_text(spec.read_text().replace('"channels": 64', '"channels": 32'))
    found = rows([*dit(files), *source_autoencoder(files), *empty])
    assert {found[name].state for name in SOURCE} == {"red"}  # a wrong file shows without clips


def test_a_place_for_the_report_is_made_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "verify", lambda *_: pytest.fail("minutes of work for no place"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file"):
        verify.main(["--json", str(tmp_path / "file" / "verify.json")])


def test_another_tokenizer_is_red(files: Path) -> None:
    description = files / "gemma" / "tokenizer.json"
    content = json.loads(description.read_text())
    overrides = [*NO_SOURCE, "autoencoder.weights=null", *text(files)]
    fewer = {**content, "model": {**content["model"], "merges": content["model"]["merges"][:40]}}
    description.write_text(json.dumps(fewer))  # the same vocabulary, other words
    assert states(rows(overrides, files / "pipeline")) == {VOCABULARY: "green", TEXT: "red"}
    vocabulary = dict(list(content["model"]["vocab"].items())[:-5])
    merges = [pair for pair in content["model"]["merges"] if {*pair, "".join(pair)} <= vocabulary.keys()]
    smaller = {**content, "model": {**content["model"], "vocab": vocabulary, "merges": merges}}
    description.write_text(json.dumps(smaller))
    found = rows(overrides)
    assert found[VOCABULARY].state == "red"
    assert found[VOCABULARY].number == 5


def test_a_perturbed_text_encoder_is_red_beside_the_pipeline(files: Path) -> None:
    change(files / "gemma" / "model.safetensors", "model.norm.weight", lambda value: value + 0.01)
    overrides = [*NO_SOURCE, "autoencoder.weights=null", *text(files)]
    assert states(rows(overrides, files / "pipeline")) == {VOCABULARY: "green", TEXT: "red"}


def test_a_pipeline_that_is_not_there_or_lacks_the_part_is_said(files: Path) -> None:
    with pytest.raises(SystemExit, match="--diffusers no/such is not on this machine"):
        verify.main(["--diffusers", "no/such"])
    row = rows([*dit(files), "autoencoder.weights=null"], files / "ltx2")[DIT]
    assert row.state == "red"
    assert "no DiT in diffusers' layout" in row.note


def lose_tokenizer(pipeline: Path) -> None:
    shutil.rmtree(pipeline / "tokenizer")


def widen_config(pipeline: Path) -> None:
    file = pipeline / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_size": 32}))


def lose_weights(pipeline: Path) -> None:
    (pipeline / "text_encoder" / "model.safetensors").unlink()


@pytest.mark.parametrize("spoil", [lose_tokenizer, widen_config, lose_weights])
def test_a_pipeline_that_cannot_be_read_is_red_and_the_other_rows_go_on(
    files: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(files / "pipeline")
    found = rows([*dit(files), "autoencoder.weights=null", *text(files)], files / "pipeline")
    assert states(found) == {DIT: "green", VOCABULARY: "red", TEXT: "red"}
    assert found[TEXT].note.startswith(f"{files / 'pipeline'} gives diffusers no Gemma-2 with a tokenizer (")
    assert "\n" not in found[TEXT].note


def test_the_probe_sees_every_weight_of_the_dit() -> None:
    """A weight that the forward does not depend on could be wrong unnoticed."""
    node = {**SIZES, "_target_": "sana_train.models.sana_video.SanaVideoDiT", "compat": "diffusers"}
    state = build().state_dict()
    sound = our_velocity(node, state)
    unseen = []
    for key in sorted(state.keys() - {"null_context"}):  # for which diffusers has no place
        # Not one factor for all: linear attention does not change with the size of its queries and keys.
        factors = 1.0 + 0.1 * torch.rand(state[key].shape, generator=torch.Generator().manual_seed(0))
        velocity = our_velocity(node, {**state, key: state[key] * factors})
        if relative_difference(velocity, sound) <= 10 * TOLERANCE:
            unseen.append(key)
    assert unseen == []
