from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "convergence.ipynb"


SHIPPED = NOTEBOOK.parents[1] / "experiments" / "ltx_adapt_tiny_3"


@pytest.mark.parametrize("is_shipped", [False, True])
def test_runs_on_a_record_and_shows_figure_and_tables(record_dir, monkeypatch, is_shipped):
    monkeypatch.setenv("SANA_RECORD", str(SHIPPED if is_shipped else record_dir))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    mime_types = [kind for output in shown for kind in output.get("data", {})]
    assert mime_types.count("image/png") == 2
    tables = "".join(output.get("data", {}).get("text/markdown", "") for output in shown)
    assert "S90-semantic" in tables
    assert "scratch / random" in tables
    assert "<-" in tables


def test_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
