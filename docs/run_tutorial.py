"""Runs sweeps/tutorial.ipynb in a fresh kernel and writes it with its outputs: `python docs/run_tutorial.py [OUT]`.

Without OUT the notebook itself is written, which is how the committed outputs are made.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

#: The kind of output that a progress bar of ipywidgets is.
WIDGET = "application/vnd.jupyter.widget-view+json"
TUTORIAL = Path(__file__).parents[1] / "sweeps" / "tutorial.ipynb"


def main(out: Path) -> None:
    """Executes every cell; an error in one is raised with its traceback."""
    notebook = nbformat.read(TUTORIAL, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # Sockets are files in that folder: no network, and nobody else listens.
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=f"{folder}/kernel.json")
        settings = {"timeout": 600, "startup_timeout": 300, "record_timing": False}
        NotebookClient(notebook, km=kernel, resources={"metadata": {"path": folder}}, **settings).execute(
            cleanup_kc=True
        )
    for cell in notebook.cells:
        if cell.cell_type == "code":  # progress is for those who wait
            cell.outputs = [
                one for one in cell.outputs if one.get("name") != "stderr" and WIDGET not in one.get("data", {})
            ]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    nbformat.write(notebook, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TUTORIAL)
