"""The notebooks run from the first cell to the last, and print the output that is stored in them.

python -m tests.test_notebooks    updates the notebooks with the current output; read the diff
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def run(path: Path, folder: Path) -> Any:
    """Run a notebook with a new kernel in `folder`; returns it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}})
    # tqdm warns about a missing package for bars in notebooks, which no cell needs.
    return client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"})


def shown(notebook: Any) -> list[list[tuple[str, str]]]:
    """For each code cell its output by stream and the text of its value."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts: dict[str, str] = {}
            for output in cell.outputs:
                name = output.name if output.output_type == "stream" else output.output_type
                text = output.text if output.output_type == "stream" else output["data"]["text/plain"]
                texts[name] = texts.get(name, "") + text
            cells.append(sorted(texts.items()))
    return cells


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_stored_in_it(path: Path, tmp_path: Path) -> None:
    stored = shown(nbformat.read(path, as_version=4))
    assert any(cell for cell in stored)
    assert not any(name == "stderr" for cell in stored for name, _ in cell)
    assert shown(run(path, tmp_path)) == stored


def test_there_is_a_notebook_for_each_framework() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["langchain", "llama_index"]


if __name__ == "__main__":
    for one in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as room:
            made = run(one, Path(room))
        for cell in made.cells:
            cell.metadata.pop("execution", None)  # times
        nbformat.write(made, one)
