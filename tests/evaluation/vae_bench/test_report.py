"""What people are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sana_train.evaluation.vae_bench.paper import judge
from sana_train.evaluation.vae_bench.record import FIGURE_FILE, REPORT_FILE, TABLE_FILE, VaeTable
from sana_train.evaluation.vae_bench.report import report, require_own_folder, write_table

ALL = ("wan_2b", "dcae_v_2b", "ltx2_2b")


def test_fits_100_columns_with_long_names_and_slow_and_quick_rows(make_row, make_table, manifest) -> None:
    rows = [replace(make_row(name, 1e-3 / 7, 1234 / 7), label=f"{name[:4]:x<13}.2") for name in ALL]
    table = make_table(*rows)
    lines = report(table, [], None).splitlines()
    assert max(map(len, lines)) <= 100
    table = make_table(*map(make_row, ALL))
    assert max(len(line) for line in report(table, judge(table, manifest), manifest).splitlines()) <= 100


def test_says_what_was_measured(make_row, make_table, manifest) -> None:
    table = make_table(make_row("wan_2b"), make_row("ltx2_2b", decode_x=1.5, extra_db=None))
    text = report(table, judge(table, manifest), manifest)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert ["wan_2b", "16 x 21 x 88 x 160", "295,680", "4,730,880", "48", "2,140.4 M"] in rows
    assert ["wan_2b", "2.9 [2.61, 26.1]", "5 [4.5, 45]", "43.8", "45.5"] in rows
    assert ["wan_2b", "34.15", "0.950", "no trunk weights"] in rows
    assert ["ltx2_2b", "random weights", "-", "-"] in rows
    assert ["ltx2_2b", "decode <= 1.3x", "0.9 s", "1.35 s, 1.50x", "FAIL"] in rows
    assert "100 clips of the given shards" in text
    assert "device: NVIDIA H100 80GB HBM3" in text


def test_lpips_is_shown_where_there_is_one(make_row, make_table) -> None:
    row = make_row("wan_2b")
    with_lpips = replace(row, quality={**row.quality, "lpips": 0.0171})
    assert "| 0.017 |" in report(make_table(with_lpips), [], None)


def test_what_is_written_is_read_back(make_row, make_table, manifest, tmp_path: Path) -> None:
    table = make_table(make_row("wan_2b"), make_row("ltx2_2b", extra_db=None))
    write_table(tmp_path / "out", table, judge(table, manifest), manifest, manifest.metrics)
    assert VaeTable.load(tmp_path / "out") == table
    assert json.loads((tmp_path / "out" / TABLE_FILE).read_text())["verdicts"][0]["status"] == "pass"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {TABLE_FILE, REPORT_FILE, FIGURE_FILE}
    with Image.open(tmp_path / "out" / FIGURE_FILE) as picture:
        assert picture.width == 1500
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_crash_leaves_the_older_table(make_row, make_table, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    write_table(out, make_table(make_row("wan_2b")), [], None, {})
    before = (out / TABLE_FILE).read_text()
    monkeypatch.setattr("sana_train.evaluation.vae_bench.figure.table_figure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_table(out, make_table(make_row("ltx2_2b")), [], None, {})
    assert (out / TABLE_FILE).read_text() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other files \(thesis\.tex\)"):
        require_own_folder(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        require_own_folder(tmp_path / "thesis.tex")


def test_a_folder_without_a_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no table\.json"):
        VaeTable.load(tmp_path)
