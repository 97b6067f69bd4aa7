"""The benchmark's command, on the shipped tiny autoencoders and on random ones of every class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sana_train.cli import vae_table
from sana_train.cli.vae_choice import read_choices
from sana_train.data.prepare import render_shards
from sana_train.data.world.clips import WorldClips
from sana_train.evaluation.vae_bench.record import VaeTable

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "data" / "tiny"
MANIFEST = ROOT / "data" / "manifests" / "panda70m_vae.yaml"
SMALL_LTX = ["ltx2_tiny", "weights=null", "encoder_widths=[8,8,8,16]", "decoder_widths=[8,8,16]"]
SMALL_DCAE = ["dcae_v_tiny", "weights=null", "widths=[8,8,8,8,8,8]"]
SMALL_WAN = ["wan_2b", "weights=null", "base_width=8", "num_res_blocks=1"]


def command(out: Path, *autoencoders: list[str], more: str = "") -> list[str]:
    chosen = [word for words in autoencoders for word in ("--autoencoder", *words)]
    return [str(out), *chosen, *more.split()]


def run(*arguments: object, more: str = "", code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        vae_table.main(command(*arguments, more=more))  # type: ignore[arg-type]
    assert ended.value.code == code


def refusal(*arguments: object, more: str = "") -> str:
    with pytest.raises(SystemExit) as ended:
        vae_table.main(command(*arguments, more=more))  # type: ignore[arg-type]
    assert isinstance(ended.value.code, str)
    return ended.value.code


def test_shipped_weights_reconstruct_what_their_record_says(tmp_path: Path, capsys) -> None:
    run(tmp_path / "t", ["dcae_v_tiny"], ["ltx2_tiny"], more="--num-clips 4 --rounds 1")
    table = VaeTable.load(tmp_path / "t")
    for row, part in zip(table.rows, ("dcae_v", "ltx2"), strict=True):
        assert row.quality is not None
        assert row.weights == json.loads((SHIPPED / part / "spec.json").read_text())["fingerprint"]
        recorded = json.loads((SHIPPED / part / "record.json").read_text())["heldout"]
        assert row.quality["psnr_db"] == pytest.approx(recorded["psnr_db"], abs=2.5)  # 4 clips of 256
        assert row.quality["num_clips"] == 4
        assert len(row.encode_s) == len(row.decode_s) == 1
        assert row.peak is None
    assert table.rows[0].geometry.latent == (64, 4, 4, 4)
    assert table.clips == "world"
    assert table.environment["commit"]
    shown = capsys.readouterr().out
    assert "held-out clips of the procedural world" in shown
    assert "no trunk weights" in shown


def test_random_weights_of_every_class_in_bf16(tmp_path: Path) -> None:
    out = tmp_path / "t"
    run(out, SMALL_WAN, SMALL_DCAE, SMALL_LTX, more="--size 64x96x9 --dtype bfloat16 --rounds 2")
    table = VaeTable.load(out)
    assert [row.geometry.latent for row in table.rows] == [(16, 3, 8, 12), (64, 2, 2, 3), (128, 2, 2, 3)]
    assert [row.geometry.ratio for row in table.rows] == [48, 192, 192]
    assert all(row.quality is None and row.weights == "random" for row in table.rows)
    assert all(len(row.decode_s) == 2 and min(row.decode_s) > 0 for row in table.rows)
    assert table.clips is None
    assert str(tmp_path) not in (out / "table.json").read_text()


def test_judges_on_shards(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    render_shards(WorldClips("heldout", 3), folder)
    run(tmp_path / "t", ["dcae_v_tiny"], more=f"--clips {folder} --num-clips 2 --rounds 1")
    table = VaeTable.load(tmp_path / "t")
    assert table.clips == "shards"
    assert table.rows[0].quality is not None
    assert table.rows[0].quality["num_clips"] == 2
    assert table.rows[0].quality["psnr_db"] > 25
    assert str(folder) not in (tmp_path / "t" / "table.json").read_text()


def test_a_missed_bar_is_the_exit_status(tmp_path: Path, monkeypatch, capsys) -> None:
    """At the paper's size and dtype but as quick as a toy, on a device that is called an H100."""
    monkeypatch.setattr(vae_table, "environment", lambda _: {"device": "NVIDIA H100 (pretended)"})
    text = MANIFEST.read_text().replace("frames: 81", "frames: 9").replace("height_px: 704", "height_px: 64")
    text = text.replace("width_px: 1280", "width_px: 96").replace("dtype: bfloat16", "dtype: float32")
    text = text.replace("latent: [16, 21, 88, 160]", "latent: [16, 3, 8, 12]")
    manifest = tmp_path / "toy.yaml"
    manifest.write_text(text)
    run(tmp_path / "t", SMALL_WAN, more=f"--rounds 1 --manifest {manifest}")
    assert "encode <= 1.3x" in capsys.readouterr().out
    manifest.write_text(text.replace("decode_s: 5.0", "decode_s: 0.000001"))
    run(tmp_path / "t", SMALL_WAN, more=f"--rounds 1 --manifest {manifest}", code=1)
    verdicts = json.loads((tmp_path / "t" / "table.json").read_text())["verdicts"]
    assert [verdict["status"] for verdict in verdicts] == ["pass", "pass", "FAIL", "not judged"]


def test_dry_run_gives_the_papers_latents_without_weights(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    run(tmp_path / "t", ["wan_2b"], ["dcae_v_2b", "weights=null"], more=f"--manifest {MANIFEST} --dry-run")
    shown = capsys.readouterr().out
    assert "| 16 x 21 x 88 x 160   | 295,680 | 4,730,880 | 48    |" in shown
    assert "| 64 x 20 x 22 x 40    | 17,600  | 1,126,400 | 192   |" in shown
    assert "wan_2b: weights NOT FOUND Wan-AI" in shown
    assert "dcae_v_2b: weights random" in shown
    assert "704x1280x81 in bfloat16" in shown
    assert not (tmp_path / "t").exists()


def test_labels_tell_one_architecture_from_itself() -> None:
    choices = read_choices(
        [["dcae_v_tiny"], ["ltx2_tiny"], ["dcae_v_tiny", "use_streaming=true", "weights=x"]]
    )
    assert [choice.label for choice in choices] == ["dcae_v_tiny.1", "ltx2_tiny", "dcae_v_tiny.2"]
    assert choices[2].overrides == ("use_streaming=true",)
    assert choices[2].node["use_streaming"] is True


def test_a_yaml_of_ones_own(tmp_path: Path) -> None:
    conf = ROOT / "conf" / "autoencoder" / "dcae_v_tiny.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text(conf.read_text())
    (choice,) = read_choices([[str(mine), "weights=null"]])
    assert choice.config == choice.label == "mine"
    assert choice.skeleton().spec.channels == 64


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("psnr_db: 34.15", "psnr: 34.15", "the nearest is paper.wan_2b.psnr_db"),
        ("decode_s: 0.9", "decode_s: fast", "paper.ltx2_2b.decode_s: expected float"),
        ("latent: [16, 21, 88, 160]", "latent: [16, 21, 88]", "paper.wan_2b.latent"),
        ("dtype: bfloat16", "dtype: bf16", "expected a dtype of float32, bfloat16, float16"),
        ("reconstruction.psnr ", "reconstruction.other ", "the metrics computed here"),
        ("frames: 81", "frames: [81", "no YAML"),
    ],
)
def test_a_manifest_with_a_mistake_is_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    text = MANIFEST.read_text()
    assert text.count(before) == 1
    (tmp_path / "m.yaml").write_text(text.replace(before, after))
    assert message in refusal(tmp_path / "t", SMALL_DCAE, more=f"--manifest {tmp_path / 'm.yaml'}")


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        (["ltx2_tny"], "", "no such autoencoder; the nearest is ltx2_tiny"),
        (["no/such.yaml"], "", "no/such.yaml: there is no such file"),
        (["dcae_v_tiny", "latent_chanels=3"], "", "the nearest is autoencoder.latent_channels"),
        (["dcae_v_tiny", "use_streaming"], "", "overrides are key=value, got 'use_streaming'"),
        (["dcae_v_tiny"], "--size 128", "expected height x width x frames"),
        (["ltx2_tiny"], "--size 128x128x16", "takes 1 + 8k frames, got 16"),
        (["ltx2_tiny"], "--size 64x128x17", "the procedural world is square"),
        (["dcae_v_tiny", "weights=nowhere/at/all"], "", "weights=null for random ones"),
        (["dcae_v_tiny"], f"--manifest {ROOT / 'conf/world/default.yaml'}", "there is no such key"),
    ],
)
def test_bad_input_is_one_message_and_no_folder(tmp_path: Path, words, more: str, message: str) -> None:
    assert message in refusal(tmp_path / "t", words, more=more)
    assert not (tmp_path / "t").exists()
