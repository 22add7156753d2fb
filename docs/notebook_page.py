"""Sphinx extension: a Jupyter notebook as a page, its committed outputs shown as they are and nothing run."""

import json
from typing import Any

from myst_parser.parsers.sphinx_ import MystParser


def markdown(notebook: dict[str, Any]) -> str:
    """The cells and outputs of a notebook as one MyST document."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [output for output in map(shown, cell["outputs"]) if output]
    return "\n\n".join(parts) + "\n"


def shown(output: dict[str, Any]) -> str:
    """One output: a picture if there is one, else HTML, else text; "" for what a log says on stderr."""
    if output["output_type"] == "stream":
        return "" if output["name"] == "stderr" else f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = {kind: "".join(text) for kind, text in output["data"].items()}
    if "image/png" in data:
        return f"![output](data:image/png;base64,{''.join(data['image/png'].split())})"
    if "text/html" in data:
        return f"```{{raw}} html\n{data['text/html']}\n```"
    return f"```text\n{data['text/plain']}\n```"


class NotebookParser(MystParser):
    """Reads .ipynb files."""

    supported = ("ipynb",)

    def parse(self, inputstring: str, document: Any) -> None:
        """Parses the notebook's JSON as the Markdown that it stands for."""
        super().parse(markdown(json.loads(inputstring)), document)


def setup(app: Any) -> dict[str, bool]:
    """Makes .ipynb a source."""
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
