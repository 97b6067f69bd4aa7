"""cli.latency with tiny networks: parts, a whole pass, and what a folder is refused for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sana_train.cli.latency import main
from sana_train.evaluation.latency import PIPELINES

OURS = ("convergence.generator.schedule.num_steps=2", "--size", "tiny", "--ways", "ours")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latency") / "out"
    main([str(out), "ltx2_2k", *OURS, "--steps", "1", "--whole"])
    main([str(out), "wan_480p", "--size", "tiny", "--steps", "1", "--ways", "stock"])
    return out


def test_parts_add_up_and_a_whole_pass_stands_beside(made: Path) -> None:
    results = json.loads((made / "results.json").read_text())
    row = results["pipelines"]["ltx2_2k"]["ours"]
    assert list(row["stages_s"]) == sorted(PIPELINES["ltx2_2k"].parts)
    parts = results["parts"]
    assert row["stages_s"]["stage 2"] == pytest.approx(3 * parts["refine_2k.ours"]["s"])
    assert row["stages_s"]["stage 1"] == pytest.approx(2 * parts["denoise_ltx2_720p.ours"]["s"])
    assert row["s"] == pytest.approx(sum(row["stages_s"].values()))
    assert set(row["whole"]["stages_s"]) == set(row["stages_s"])
    assert set(results["pipelines"]) == {"ltx2_2k", "wan_480p"}  # text alone makes no pipeline
    assert results["free_upgrade"] == {"stock": None, "ours": None}
    table = (made / "table.md").read_text()
    assert max(map(len, table.splitlines())) <= 100
    assert "Gemma-3" in table
    with Image.open(made / "figure.png") as picture:
        assert picture.width > 900


def test_what_is_there_is_not_measured_again(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {file: file.stat().st_mtime_ns for file in (made / "parts").iterdir()}
    main([str(made), "ltx2_2k", *OURS])
    main([str(made), "--report"])
    main([str(made), "wan_480p", *OURS])
    added = {"denoise_wan_480p.ours.json"}  # the decoder is the same on both sides
    assert {file.name for file in (made / "parts").iterdir()} - {file.name for file in times} == added
    (made / "parts" / added.pop()).unlink()
    assert {file: file.stat().st_mtime_ns for file in (made / "parts").iterdir()} == times
    assert "refine_2k.ours: there" in capsys.readouterr().out


def test_bad_input_says_what_to_do(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, message in (
        ((), "no pipeline given; take one or more of wan_480p"),
        (("ltx3",), "ltx3 given"),
        (("--report",), r"no part in .*cli\.latency measures them"),
        (("ltx2_2k", "model.kernel=fast", "--size", "tiny"), r"(?s)model\.kernel"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([str(out), *words])
    assert not out.exists()
    with pytest.raises(SystemExit, match=r"text.ours.json was made with another overrides; give another"):
        main([str(made), "ltx2_2k", "model.compat=diffusers", "--size", "tiny", "--ways", "ours"])
