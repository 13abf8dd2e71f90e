"""The notebooks of the docs run from top to bottom, in a real kernel."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import fl

FOLDER = Path(fl.__file__).parent.parent / "docs/notebooks"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.ipynb")), ids=lambda file: file.stem)
def test_a_notebook_runs(file, tmp_path):
    notebook = nbformat.read(file, 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    kinds = {kind for cell in notebook.cells for out in cell.get("outputs", ()) for kind in out.get("data", ())}
    assert "image/png" in kinds  # a figure shows itself
    assert "text/html" in kinds  # tables and progress, too
    streams = [out for cell in notebook.cells for out in cell.get("outputs", ()) if out.get("name") == "stderr"]
    assert streams == []  # no warnings, and no progress as text
