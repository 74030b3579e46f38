"""Every notebook runs top to bottom, is kept without outputs, and names the line to change for a real checkpoint."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, organism: Path) -> None:
    assert organism.is_dir()  # trained before the clock of the notebook starts
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)


@pytest.mark.slow
def test_the_quickstart_runs_on_other_checkpoints(fixtures: Path) -> None:
    """Its first cell alone is changed, as it says; these have no chat template, other names and fewer blocks."""
    path = NOTEBOOKS[0]
    notebook = nbformat.read(path, as_version=4)
    cells = {"AutoAWQ": str(fixtures / "autoawq_gemm"), "GPTQ": str(fixtures / "gptqmodel_v1")}
    notebook.cells[1].source = f"BASELINE = {str(fixtures / 'fp16')!r}\nCELLS = {cells}"
    where = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    averages = next(c for c in notebook.cells if "averages[[" in c.source).outputs[-1]["data"]["text/plain"]
    assert {"AutoAWQ", "GPTQ"} <= set(averages.split())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
    assert "To use a real checkpoint" in notebook.cells[0].source
