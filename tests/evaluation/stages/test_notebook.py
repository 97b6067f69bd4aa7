"""The notebook on what is shipped, and on a record that keeps means alone."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sana_train.evaluation.stages.record import read_evaluation
from sana_train.utils.files import write_json

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "two_stage.ipynb"


def shown_by(notebook: nbformat.NotebookNode) -> tuple[list[str], str]:
    """(MIME types, all tables) of the executed notebook."""
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    mime_types = [kind for output in shown for kind in output.get("data", {})]
    return mime_types, "\n".join(output.get("data", {}).get("text/markdown", "") for output in shown)


def test_runs_on_the_shipped_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANA_TWO_STAGE_RECORD", raising=False)
    mime_types, tables = shown_by(nbformat.read(NOTEBOOK, as_version=4))
    assert mime_types.count("image/png") == 2
    for column in ("stage1", "stage2", "ceiling", "noise"):
        assert f"| {column} " in tables


def test_reads_another_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mean = {"mean": 0.5, "low": 0.4, "high": 0.6, "num_clips": 3}
    columns = {"stage1": {"semantic": mean, "colour": None}, "stage2": {"semantic": {**mean, "mean": 0.75}}}
    write_json(tmp_path / "results.json", {"num_clips": 3, "columns": columns})
    monkeypatch.setenv("SANA_TWO_STAGE_RECORD", str(tmp_path))
    _, tables = shown_by(nbformat.read(NOTEBOOK, as_version=4))
    assert "0.750 [0.400, 0.600]" in tables
    assert "no paired differences" in tables
    assert "no pictures" in tables


def test_a_folder_without_numbers_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no metrics.json nor .* evaluate.py"):
        read_evaluation(tmp_path)


def test_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
