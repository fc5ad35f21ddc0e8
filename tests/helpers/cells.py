"""A notebook's code, cell by cell in this process: what a kernel does, in a fraction of the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat

from drolab import notebooks


def cells_of(path: Path, **parameters: Any) -> list[str]:
    """The code cells of a notebook, with these parameters."""
    notebook = nbformat.read(path, as_version=4)
    notebooks.inject(notebook, parameters, path.name)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def run_cells(cells: list[str], names: dict[str, Any]) -> None:
    """Run them one after the other; `names` is what they leave behind, also where one of them fails."""
    for number, source in enumerate(cells):
        exec(compile(source, f"cell {number}", "exec"), names)
