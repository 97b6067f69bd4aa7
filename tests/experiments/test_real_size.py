"""The scripts of experiments/real_size at tiny size: the code that a GPU will run, in one process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "experiments" / "real_size"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"real_size_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part that needs no compiler, and the report of them."""
    folder = tmp_path_factory.mktemp("real_size")
    dit, variants = script("dit"), script("variants")
    dit.WARM_UP, dit.REPEATS = 1, 2
    precision = torch.get_float32_matmul_precision()
    for part in ("write", "load", "step"):
        file = str(folder / "wan.pth")
        dit.main([part, str(folder / "parts"), "--checkpoint", file, "--size", "tiny"])
    torch.set_float32_matmul_precision(precision)
    for kind, ways in variants.WAYS.items():
        chosen = [way for way in ways if "compiled" not in way]
        variants.main(
            [str(folder / "parts" / f"{kind}.json"), kind, *chosen, "--size", "tiny", "--rounds", "1"]
        )
    decode = script("decode")
    decode.NUM_CLIPS = decode.ROUNDS = 2
    decode.main([str(folder / "parts"), str(folder / "scratch"), "--size", "tiny"])
    script("report").main([str(folder)])
    return folder


def part(out: Path, name: str) -> dict:
    return json.loads((out / "parts" / f"{name}.json").read_text())


def test_the_file_has_the_published_tensors_and_is_loaded_once(out: Path) -> None:
    written, loaded = part(out, "write"), part(out, "load")
    assert written["num_tensors"] == 17 + 20 * 6  # 417 with 20 blocks
    assert written["dtypes"] == ["torch.bfloat16"]
    assert loaded["changed_while_loading"] == []
    assert sorted(loaded["load_report"]["reshaped"]) == [
        "final_layer.linear.bias",
        "final_layer.linear.weight",
        "patch_embed.weight",
    ]
    assert loaded["host_anonymous_added_gib"] < 2 * loaded["network_gib"]


def test_a_step_is_timed_and_counted(out: Path) -> None:
    record = part(out, "step")
    assert [(row["pass"], row["weights"]) for row in record["rows"]] == [
        (name, weights) for weights in ("float32", "bfloat16") for name in ("forward", "forward_backward")
    ]
    for row in record["rows"]:
        assert row["ms_range"][0] <= row["ms"] <= row["ms_range"][1]
        assert row["tokens_per_s"] == pytest.approx(record["num_tokens"] / row["ms"] * 1000)
    forward, both = record["rows"][0]["flops"], record["rows"][1]["flops"]
    assert 2.8 < both / forward < 3.0


@pytest.mark.parametrize("kind", ["ltx2", "dcae_v"])
def test_every_way_gives_the_same_result(out: Path, kind: str) -> None:
    rows = part(out, kind)["rows"]
    assert len(rows) > 1
    assert rows[0]["encode"]["of_first"] == rows[0]["decode"]["of_first"] == 1.0
    assert all(max(row["error"].values()) < 1e-5 for row in rows)


def test_memory_of_the_host_is_watched_from_beside() -> None:
    with script("dit").HostMemory() as host:
        torch.ones(2**24).sum()  # 64 MiB, freed before the end
    assert host.peak["anonymous"] >= host.before["anonymous"]


def test_decoding_is_timed_from_files_that_cost_what_their_bits_do(out: Path) -> None:
    record = part(out, "decode")
    assert not list((out / "scratch" / "films").iterdir())
    contents = {row["content"]: row for row in record["rows"]}
    assert contents["world under noise"]["mbit_per_s"] > 2 * contents["world"]["mbit_per_s"]
    assert {row["threads"] for row in record["rows"]} == {1, record["cores"]}
    for row in record["rows"]:
        assert row["frames_per_s"] == pytest.approx(17 * row["clips_per_s"])


def test_films_move_back_and_forth() -> None:
    module = script("decode")
    source = module.WorldClips("heldout", 1, size_px=96)
    film = module.film(source, 0, module.VideoShape(40, 64, 96), 0.0)
    assert film.shape == (3, 40, 64, 96)
    assert not torch.equal(film[:, 0], film[:, 1])
    assert torch.equal(film[:, 15], film[:, 17])  # around frame 16, and around 32, which is frame 0 again
    assert torch.equal(film[:, 31], film[:, 33])
    assert torch.equal(film[:, 32], film[:, 0])


@pytest.mark.slow
def test_export_and_verify_run_as_a_user_runs_them(tmp_path: Path) -> None:
    file = str(tmp_path / "wan.pth")
    parts, scratch = str(tmp_path / "parts"), str(tmp_path / "scratch")
    script("dit").main(["write", parts, "--checkpoint", file, "--size", "tiny"])
    script("export").main([parts, scratch, "--checkpoint", file, "--size", "tiny"])
    rows = part(tmp_path, "export")["rows"]
    assert len(rows) == 4
    for row in rows[1:]:
        assert row["difference"] <= 1e-5
        assert row["host_peak_gib"]["anonymous"] > 0.1  # python and torch alone are more
    assert rows[1]["disk_gib"] == pytest.approx(rows[0]["disk_gib"], rel=0.02)  # both in bf16
    assert list(Path(scratch).iterdir()) == []
    script("report").main([str(tmp_path)])
    assert "| convert --to nvlabs |" in (tmp_path / "results.md").read_text()


def test_a_command_that_fails_is_said_with_what_it_printed(tmp_path: Path) -> None:
    given = ["a", "b", "--to", "nvlabs", "--no"]
    with pytest.raises(RuntimeError, match=r"(?s)bad ended with 2.*unrecognized arguments: --no"):
        script("export").run("bad", "sana_train.cli.convert", given, tmp_path / "log")


def test_a_step_that_does_not_fit_is_a_row_of_its_own() -> None:
    def call() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")

    row = script("dit").measure(call, 1, 1, torch.device("cpu"))
    assert row == {"error": "CUDA out of memory. Tried to allocate 9 GiB"}


def test_the_page_shows_what_was_measured(out: Path) -> None:
    page = (out / "results.md").read_text()
    assert f"{part(out, 'load')['num_parameters']:,}" in page
    assert "| forward_backward | bfloat16 | no |" in page
    assert "| channels_last |" in page
    assert json.loads((out / "results.json").read_text()).keys() == {
        "write",
        "load",
        "step",
        "ltx2",
        "dcae_v",
        "decode",
    }
    row = part(out, "decode")["rows"][0]
    cores = row["core_s_per_clip"] / part(out, "ltx2")["rows"][-1]["encode"]["s"]
    assert f"| world | {row['mbit_per_s']:.1f} | 1 |" in page
    assert f" {cores:,.1f} |" in page


def test_an_unknown_way_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script("variants").main([str(tmp_path / "x.json"), "ltx2", "faster", "--size", "tiny"])
    assert "ltx2 has no way faster" in capsys.readouterr().err
