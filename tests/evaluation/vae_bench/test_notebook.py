from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sana_train.evaluation.vae_bench.report import write_table

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "vae_table.ipynb"


def shown_by(notebook: nbformat.NotebookNode) -> tuple[list[str], str]:
    """(MIME types, all tables) of the executed notebook."""
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    mime_types = [kind for output in shown for kind in output.get("data", {})]
    return mime_types, "\n".join(output.get("data", {}).get("text/markdown", "") for output in shown)


def test_runs_on_the_shipped_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANA_VAE_RECORD", raising=False)
    mime_types, tables = shown_by(nbformat.read(NOTEBOOK, as_version=4))
    assert mime_types.count("image/png") == 1
    assert "| dcae_v_tiny | 64 x 4 x 4 x 4 " in tables
    assert "No row of this table is in the manifest." in tables
    wan = next(line for line in tables.splitlines() if line.startswith("| Wan2.1 "))
    assert [cell.strip() for cell in wan.split("|")[3:5]] == ["30.5", "3.8"]


def test_reads_another_record_and_judges_it(
    make_row, make_table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(tmp_path / "mine", make_table(make_row("ltx2_2b", decode_x=2.0)), [], None, {})
    monkeypatch.setenv("SANA_VAE_RECORD", str(tmp_path / "mine"))
    _, tables = shown_by(nbformat.read(NOTEBOOK, as_version=4))
    verdicts = [line.split("|")[-2].strip() for line in tables.splitlines() if line.startswith("| ltx2_2b ")]
    assert verdicts[-4:] == ["pass", "pass", "FAIL", "pass"]


def test_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
