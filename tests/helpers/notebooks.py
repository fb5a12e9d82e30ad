"""Runs the notebooks: in tests at toy size, and for `make notebooks` as they are, whose outputs are kept in them."""

import argparse
import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.helpers import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 1200  # a cell that hangs ends here


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: NotebookNode) -> str:
    """By which outputs are known to be those of the code beside them."""
    code = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def settings(notebook: NotebookNode) -> NotebookNode:
    """The first cell of code, which has the tag that papermill looks for."""
    first = code_cells(notebook)[0]
    assert first.metadata.get("tags") == ["parameters"]
    return first


def with_settings(notebook: NotebookNode, values: dict[str, Any], before: str = "") -> NotebookNode:
    """The notebook with other values behind those of its settings, and `before` run before them."""
    cell = settings(notebook)
    known = {target.id for node in ast.parse(cell.source).body for target in node.targets}
    assert values.keys() <= known, f"the notebook has no setting {sorted(values.keys() - known)}"
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    cell.source = "\n".join([before, cell.source, *lines])
    return notebook


def execute(notebook: NotebookNode, kernel: KernelManager | None = None, cwd: Path = ROOT) -> NotebookNode:
    """Run all cells, in a kernel of their own or in one that is there already; an error of a cell is raised."""
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(cwd)}},
    )
    return client.execute()


def texts(cells: Iterable[NotebookNode]) -> str:
    """All that the cells printed and gave, as text."""
    outputs = [output for cell in cells for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def pictures(cells: Iterable[NotebookNode]) -> list[str]:
    """The pictures that the cells show, PNG files in base64."""
    outputs = [output for cell in cells for output in cell.outputs]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def main() -> None:
    parser = argparse.ArgumentParser(description="Run notebooks as they are, and keep what they print and show.")
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    for path in parser.parse_args().notebooks:
        notebook = execute(read(path))
        for cell in code_cells(notebook):  # progress bars and logs are of one machine and hour
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)  # the same picture, which is shown as PNG
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "hf_distill": {"outputs_of": digest(notebook)},
        }
        nbformat.write(notebook, path)
        print(f"{path}: {len(pictures(code_cells(notebook)))} pictures")


if __name__ == "__main__":
    main()
