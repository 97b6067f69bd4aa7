"""The main job from end to end at toy size: adapt, go on, be refused, build single parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sana_train.cli.parts import Parts
from sana_train.training import checkpoint as ckpt
from sana_train.training.jsonl import read_jsonl


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
    record = json.loads((run_dir / "run.json").read_text())
    assert record["frozen_after"] == record["frozen_before"]
    exported = load_file(run_dir / "export" / "model.safetensors")
    assert exported["patch_embed.weight"].shape[1] == 128
    assert all(value.dtype == torch.bfloat16 for value in exported.values())

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
        SystemExit, match=r"used with another configuration(.|\n)*training.lr: 0.001 then, 0.01 now"
    ):
        place.train("run_id=mine", "training.lr=0.01")
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


def test_the_report_says_what_is_kept(workplace: Any) -> None:
    parts = Parts(workplace.config(), torch.device("cpu"))
    report = str(parts.load_report)
    assert "patch_embed" in report
    source, moved = parts.source_state, parts.model.state_dict()
    assert torch.equal(moved["blocks.0.ffn.expand.weight"], source["blocks.0.ffn.expand.weight"])
    assert torch.equal(moved["final_layer.scale_shift_table"], source["final_layer.scale_shift_table"])
    assert moved["patch_embed.weight"].shape != source["patch_embed.weight"].shape


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


def test_a_missing_section_says_which_and_how(workplace: Any) -> None:
    parts = Parts(workplace.config("~text"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"needs the section `text`.*choose one with text=<option>"):
        _ = parts.text_encoder


def test_work_is_counted_for_throughput(workplace: Any) -> None:
    config = workplace.config("latents.mode=online")
    parts = Parts(config, torch.device("cpu"))
    task = parts.task()
    flops, tokens = parts.work_per_sample(task, parts.clips_for(task)[0])
    assert tokens == 3 * 4 * 4
    assert flops is not None and flops > tokens * sum(p.numel() for p in parts.model.parameters())
