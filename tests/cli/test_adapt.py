"""The main job from end to end at toy size: adapt, go on, be refused, build single parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from sana_train.cli import convert
from sana_train.cli.instantiate import instantiate
from sana_train.cli.parts import Parts
from sana_train.cli.study import Study
from sana_train.data.resident import ResidentClips
from sana_train.evaluation.convergence.levels import Levels
from sana_train.text.gemma2 import Gemma2TextEncoder
from sana_train.training import checkpoint as ckpt
from sana_train.training.jsonl import read_jsonl
from sana_train.training.tasks.inputs import normalised_latents


@pytest.fixture(scope="module")
def workplace(make_workplace: Any) -> Any:
    return make_workplace()


@pytest.mark.slow
def test_adapt_go_on_and_refuse_another_configuration(
    make_workplace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_workplace()
    run_dir: Path = place.root / "runs" / "mine"

    place.train("run_id=mine")
    said = capsys.readouterr().out
    assert "scale=tiny" in said
    assert "patch_embed" in said
    assert "ltx_adapt at step 2" in said
    for name in ("convergence.png", "samples.png", "samples.mp4", "export/levels.npz"):
        assert (run_dir / name).stat().st_size > 0, name
    history = read_jsonl(run_dir / "metrics.jsonl")
    assert [line["step"] for line in history if "heldout/loss" in line] == [0, 2]
    run = json.loads((run_dir / "run.json").read_text())
    assert run["frozen_after"] == run["frozen_before"]
    assert {name.partition(".")[0] for name in run["load_report"]["reshaped"]} == {
        "patch_embed",
        "final_layer",
    }
    exported = load_file(run_dir / "export" / "model.safetensors")
    assert exported["patch_embed.weight"].shape[1] == 128
    assert exported["patch_embed.weight"].dtype == torch.bfloat16
    text = (run_dir / "export" / "record.json").read_text()
    assert str(place.root) not in text  # records are shipped: they name no path of this machine
    record = json.loads(text)
    assert record["autoencoders"].keys() == {"target", "source"}
    assert record["latent_space"]["fingerprint"] == record["autoencoders"]["target"]
    for folder in ("export", "checkpoints/step_0000002"):
        convert.main([str(run_dir / folder), str(place.root / folder / "out"), "--to", "diffusers"])
        space = json.loads((place.root / folder / "out" / "sana_train.json").read_text())["latent_space"]
        assert space == record["latent_space"]
    reference = Levels.load(run_dir / "export" / "levels.npz").means("reference")
    assert record["heldout"]["heldout/loss_high"] == pytest.approx(reference["heldout/loss_high"])

    encoded = place.files("data/**/*.tar")
    assert len(encoded) == 4  # clips and latents, train and held-out
    place.train("run_id=mine", "training.max_steps=3")
    said = capsys.readouterr().out
    assert "going on from step 2" in said
    assert "encoding" not in said
    assert place.files("data/**/*.tar") == encoded
    assert read_jsonl(run_dir / "metrics.jsonl")[: len(history)] == history
    assert [path.name for path in ckpt.list_checkpoints(run_dir)] == ["step_0000002", "step_0000003"]

    before = place.files("runs/**/*")
    with pytest.raises(
        SystemExit, match=r"used with another configuration(.|\n)*training.lr: 0.01 then, 0.02 now"
    ):
        place.train("run_id=mine", "training.lr=0.02")
    assert place.files("runs/**/*") == before


@pytest.mark.slow
def test_a_runs_levels_are_the_next_ones_reference(
    make_workplace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_workplace()
    place.train("run_id=native", "latents.mode=resident")
    assert "no native reference" in capsys.readouterr().out
    [heldout, train] = sorted(place.files("data/latents/bank/*.safetensors"))
    levels = place.root / "runs" / "native" / "export" / "levels.npz"
    place.train("run_id=moved", "latents.mode=resident", f"convergence.reference={levels}")
    said = capsys.readouterr().out
    assert "no native reference" not in said
    assert "encoding" not in said
    assert sorted(place.files("data/latents/bank/*.safetensors")) == [heldout, train]


def test_a_caption_encoder_with_weights_is_used_and_not_trained(
    make_workplace: Any, tiny_gemma2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_workplace()
    captions: list[str] = []
    encode = Gemma2TextEncoder.encode
    monkeypatch.setattr(
        Gemma2TextEncoder, "encode", lambda self, texts: captions.extend(texts) or encode(self, texts)
    )
    settings = [
        "text=gemma2",
        f"text.weights={tiny_gemma2}",
        "text.max_tokens=64",
        "model.max_tokens=64",
        "model.caption_dim=16",
        "latents.mode=online",
    ]
    config = place.config(*settings)
    source = instantiate({**config.model, **config.source.model})
    save_file(source.fresh_state(source.state_dict(), seed=7), config.source.checkpoint)
    place.train("run_id=gemma2", *settings)
    run_dir: Path = place.root / "runs" / "gemma2"
    assert len(captions) >= 4 + 2 * 4  # held out, and two steps of four
    run = json.loads((run_dir / "run.json").read_text())
    assert "1.Gemma2TextEncoder" in run["frozen_before"]
    assert run["frozen_after"] == run["frozen_before"]
    saved = [path for path in run_dir.rglob("*.safetensors") if path.is_file()]
    assert saved
    assert [
        key for path in saved for key in load_file(path) if "decoder" in key or "embed_tokens" in key
    ] == []


@pytest.mark.parametrize("arm", ["adaptation=scratch", "~adaptation"])
def test_a_fresh_dit_has_gemmas_empty_caption(workplace: Any, tiny_gemma2: Path, arm: str) -> None:
    sizes = ["text.max_tokens=64", "model.max_tokens=64", "model.caption_dim=16"]
    config = workplace.config(arm, "text=gemma2", f"text.weights={tiny_gemma2}", *sizes)
    parts = Parts(config, torch.device("cpu"))
    expected, _ = parts.text_encoder.unconditional()  # type: ignore[attr-defined]
    assert torch.equal(parts.model.get_buffer("null_context"), expected)


def test_the_report_says_what_is_kept(workplace: Any) -> None:
    parts = Parts(workplace.config(), torch.device("cpu"))
    report = str(parts.load_report)
    assert "patch_embed" in report
    source, moved = parts.source_state, parts.model.state_dict()
    assert torch.equal(moved["blocks.0.ffn.expand.weight"], source["blocks.0.ffn.expand.weight"])
    assert torch.equal(moved["final_layer.scale_shift_table"], source["final_layer.scale_shift_table"])
    assert moved["patch_embed.weight"].shape != source["patch_embed.weight"].shape


def test_a_run_may_go_on_with_blocks_that_compute_again(workplace: Any) -> None:
    def losses(*more: str) -> list[float]:
        unjudged = ["convergence.steps=[]", "convergence.num_samples=0", "convergence.num_strips=0"]
        workplace.train(*more, *unjudged)
        lines = read_jsonl(workplace.root / "runs" / more[0].removeprefix("run_id=") / "metrics.jsonl")
        return [line["train/loss"] for line in lines if "train/loss" in line]

    assert len(losses("run_id=changed", "training.max_steps=1")) == 1
    changed, straight = losses("run_id=changed", "trainer.recompute=full"), losses("run_id=straight")
    assert changed == straight
    assert len(straight) == 2
    vae = ["trainer.recompute=selective", "task=reconstruction", "~adaptation"]
    with pytest.raises(ValueError, match="only a DiT can"):
        Parts(workplace.config(*vae), torch.device("cpu")).task()


def test_scratch_needs_no_source(workplace: Any) -> None:
    config = workplace.config("adaptation=scratch")
    Path(config.source.checkpoint).rename(workplace.root / "aside")
    try:
        assert Parts(config, torch.device("cpu")).load_report is not None
    finally:
        (workplace.root / "aside").rename(config.source.checkpoint)


def test_a_checkpoint_of_another_width_is_named(workplace: Any) -> None:
    parts = Parts(workplace.config("model.width=96"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"\(48,.*\(96,|48.*96"):
        _ = parts.load_report


def test_a_start_that_fails_leaves_its_run_id_free(workplace: Any) -> None:
    with pytest.raises(SystemExit, match="network of another size"):
        workplace.train("run_id=again", "model.width=96")
    assert not (workplace.root / "runs" / "again" / "identity.json").exists()


def test_a_source_autoencoder_that_cannot_be_read_ends_the_run_before_its_clips(workplace: Any) -> None:
    """Its decoder is needed for the samples at the end alone, days later at 2B."""
    other = workplace.config().autoencoder["weights"]
    latents = workplace.root / "no_latents"
    with pytest.raises(SystemExit, match=r"dcae_v|DCAE|ltx2"):
        workplace.train("run_id=wrong_source", f"source.autoencoder.weights={other}", f"paths.data={latents}")
    assert not latents.exists()
    assert not (workplace.root / "runs" / "wrong_source" / "identity.json").exists()


def test_a_missing_section_says_which_and_how(workplace: Any) -> None:
    parts = Parts(workplace.config("~text"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"needs the section `text`.*choose one with text=<option>"):
        _ = parts.text_encoder


class WeakReader:
    groups: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    chance: dict[str, float] = {}  # noqa: RUF012
    weaknesses = {"texture": 0.25}  # noqa: RUF012

    def read(self, video: Any) -> dict[str, Any]:
        return {}

    def score(self, read: Any, truth: Any) -> dict[str, Any]:
        return {}


def test_a_weak_reader_is_named_before_it_judges(
    workplace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = workplace.config("latents.mode=online", "convergence.num_samples=2")
    parts = Parts(config, torch.device("cpu"))
    parts.reader = WeakReader()  # type: ignore[assignment]
    Study(config, parts, *parts.pixels, tmp_path, Console(), [])
    assert "the reader itself is right on only texture 25%" in capsys.readouterr().out


class FewAtATime:
    """Refuses to be read in batches that would not fit a GPU at the true scale."""

    def __init__(self, source: Any, most: int) -> None:
        self.source, self.most = source, most

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Any) -> Any:
        assert len(indices) <= self.most
        return self.source.batch(indices)


def test_a_study_reads_clips_a_few_at_a_time(workplace: Any, tmp_path: Path) -> None:
    config = workplace.config("latents.mode=online", "latents.batch_size=2")
    parts = Parts(config, torch.device("cpu"))
    train, heldout = (FewAtATime(source, 2) for source in parts.pixels)
    study = Study(config, parts, train, heldout, tmp_path, Console(quiet=True), [])
    assert len(study.heldout) == 4
    assert study.heldout.latents.shape == (4, 128, 3, 4, 4)
    assert "heldout/loss_high" in study.levels.zero


def test_the_share_of_the_gap_that_is_closed_is_logged(workplace: Any, tmp_path: Path) -> None:
    config = workplace.config("latents.mode=online", "convergence.num_samples=0", "convergence.num_strips=0")
    parts = Parts(config, torch.device("cpu"))
    study = Study(config, parts, *parts.pixels, tmp_path, Console(quiet=True), [])
    assert "recovery/loss_high" not in study.evaluate(0)  # there is no reference
    bands = {f"heldout/{band}": study.evaluate(0)[f"heldout/{band}"] for band in ("loss_high", "loss_low")}
    zero, reference = (
        {name: np.float32([loss + add]) for name, loss in bands.items()} for add in (3.0, -1.0)
    )
    study.levels = Levels(zero=zero, reference=reference)
    found = {name: value for name, value in study.evaluate(0).items() if name.startswith("recovery/")}
    assert found == {f"recovery/{band}": pytest.approx(0.75) for band in ("loss_high", "loss_low")}
    study.levels = Levels(zero=reference, reference=zero)  # nothing to recover
    assert not [name for name in study.evaluate(0) if name.startswith("recovery/")]


class WithHoles(FewAtATime):
    """Clips 0 and 1 are holes, and only the third has the attribute that holes lack."""

    def batch(self, indices: Any) -> Any:
        batch = super().batch(indices)
        batch.weight = torch.tensor([float(i > 1) for i in indices])
        batch.attributes = {"count": torch.tensor([3])} if list(indices) == [2] else {}
        return batch


def test_held_out_holes_are_left_out_however_few_are_read_at_once(workplace: Any, tmp_path: Path) -> None:
    config = workplace.config("latents.mode=online", "latents.batch_size=1")
    parts = Parts(config, torch.device("cpu"))
    train, heldout = parts.pixels
    study = Study(config, parts, train, WithHoles(heldout, 1), tmp_path, Console(quiet=True), [])
    assert study.heldout.captions == heldout.batch([2, 3]).captions
    assert study.heldout.attributes["count"].tolist() == [3, -1]


def test_automatic_choices_follow_the_device(workplace: Any) -> None:
    config = workplace.config()
    parts = Parts(config, torch.device("cpu"))
    assert config.latents.mode == config.convergence.num_samples == "auto"
    assert parts.num_samples(config.convergence) == 32
    assert isinstance(parts.encoded("target", parts.autoencoder)[0], ResidentClips)  # encoded once
    parts.device = torch.device("cuda")
    assert parts.num_samples(config.convergence) == 256
    assert parts.encoded("target", parts.autoencoder) is parts.pixels  # encoded in every step


def test_work_is_counted_for_throughput(workplace: Any) -> None:
    config = workplace.config("latents.mode=online")
    parts = Parts(config, torch.device("cpu"))
    task = parts.task()
    work_of = parts.work_of_samples(task)
    assert work_of is not None
    batch = parts.clips_for(task)[0].batch([0])
    work = work_of(batch)
    assert work.tokens == 3 * 4 * 4
    assert work.flops > work.tokens * sum(p.numel() for p in parts.model.parameters())
    assert work_of(replace(batch, latents=normalised_latents(batch, task.autoencoder), video=None)) == work
