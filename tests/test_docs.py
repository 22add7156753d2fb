"""The documentation builds without a warning, holds every public name, and its tutorial runs as committed."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

import jaxsign

ROOT = Path(jaxsign.__file__).parents[1]
DOCS = ROOT / "docs"
TUTORIAL = ROOT / "sweeps" / "tutorial.ipynb"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="no documentation beside the package")


def names_in_the_reference():
    """{name, or module whose every member is documented}, as the pages of docs/api say."""
    found, module = set(), ""
    for page in sorted((DOCS / "api").glob("*.rst")):
        for directive, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(), re.MULTILINE):
            module = name if directive == "currentmodule" else module
            if directive == "automodule":
                found.add(name)
            elif directive.startswith("auto"):
                found.add(f"{module}.{name}")
    return found


def test_every_test_that_a_promise_names_exists():
    tests = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for line in (DOCS / "promises.md").read_text().splitlines():
        text = ""
        for name in re.findall(r"`(test_\w+(?:\.py|\.\.\.)?)`", line):
            if name.endswith(".py"):
                text = tests[name]
            else:
                assert f"def {name.removesuffix('...')}" in text, name


def test_every_public_name_is_in_the_reference():
    public = {name: value for name, value in vars(jaxsign).items() if not name.startswith("_")}
    exported = re.findall(r"from \S+ import \w+ as (\w+)", (ROOT / "jaxsign" / "__init__.py").read_text())
    missing = {f"jaxsign.{name}" for name in exported if name in public} - names_in_the_reference()
    assert not missing, f"give {sorted(missing)} a place in a page of docs/api"


def run(*command, **environment):
    """A subprocess that imports the package tested here."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": paths, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs")
    run("-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", out / "doctrees", DOCS, out / "html")
    return out / "html"


def test_the_pages_build_without_a_warning_and_hold_what_they_promise(built):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((built / "objects.inv").read_bytes(), uri="")
    modules = {name for name, value in vars(jaxsign).items() if inspect.ismodule(value) and not name.startswith("_")}
    exported = set(re.findall(r"from \S+ import \w+ as (\w+)", (ROOT / "jaxsign" / "__init__.py").read_text()))
    listed = {name for kind in inventory.data.values() for name in kind}
    assert {f"jaxsign.{name}" for name in exported} <= listed
    for name in modules & exported:  # what such a module defines itself is listed one by one
        module = getattr(jaxsign, name)
        own = {n for n, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__}
        assert {f"jaxsign.{name}.{n}" for n in own if not n.startswith("_")} <= listed
    pages = {path.name: path.read_text() for path in built.rglob("*.html")}
    assert "u(g) = |g|^p sgn(g)," in re.sub(r"<[^>]+>", "", pages["optimizers.html"])
    assert pages["tutorial.html"].count("data:image/png;base64,") + pages["tutorial.html"].count("_images/") == 2
    for page in pages.values():  # nothing is fetched from elsewhere when a page is read
        assert not re.search(r"""<(?:script|img)[^>]* src="(?:https?:)?//""", page)
        assert not re.search(r"""<link[^>]*stylesheet[^>]* href="(?:https?:)?//""", page)
        assert 'class="problematic"' not in page


@pytest.fixture(scope="module")
def notebook():
    return json.loads(TUTORIAL.read_text())


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shape(cell):
    """What kinds of output a cell has."""
    return [(one["output_type"], sorted(one.get("data", ()))) for one in cell["outputs"]]


def test_the_tutorial_is_committed_with_its_outputs(notebook):
    assert len(notebook["cells"]) == 15
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    pictures = ["".join(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", ())]
    assert len(pictures) == 2
    assert sum(map(len, pictures)) * 3 / 4 < 100_000  # bytes, from base64
    assert "HOLDS" in json.dumps(cells[-1]["outputs"])


def test_the_tutorial_runs_and_shows_what_is_committed(notebook, tmp_path):
    run(DOCS / "run_tutorial.py", tmp_path / "again.ipynb", JUPYTER_RUNTIME_DIR=str(tmp_path), MPLBACKEND="")
    again = json.loads((tmp_path / "again.ipynb").read_text())
    assert [cell["source"] for cell in again["cells"]] == [cell["source"] for cell in notebook["cells"]]
    for fresh, committed in zip(code_cells(again), code_cells(notebook)):
        assert shape(fresh) == shape(committed), "".join(committed["source"])
    assert "HOLDS" in json.dumps(code_cells(again)[-1]["outputs"])


def test_the_paper_style_keeps_a_notebook_interactive():
    """A notebook's backend is loaded by the first figure; leaving the style must not undo what that turned on."""
    before = mpl.is_interactive()
    try:
        with jaxsign.plot.style():
            mpl.interactive(True)
        assert mpl.is_interactive()
    finally:
        mpl.interactive(before)
