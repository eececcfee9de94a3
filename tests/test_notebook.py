"""examples/quickstart.ipynb runs from top to bottom, and its loop learns."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FILE = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(FILE, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_the_notebook_runs_and_its_loop_learns(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FILE.parents[1]))
    notebook = nbformat.read(FILE, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "iteration 2: " in printed and "stopped: limit" in printed
    assert (tmp_path / "quickstart-files" / "iteration=2" / "reliable.parquet").exists()
    (scores,) = [cell for cell in notebook.cells if cell.source.startswith("store, model")]
    (table,) = [output.data["text/plain"] for output in scores.outputs if output.output_type == "execute_result"]
    direct, *_, last = [float(line.split()[-1]) for line in table.splitlines()[2:]]
    assert last > direct
