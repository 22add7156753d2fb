"""The documentation builds without a warning and holds every public name and option; the tutorial runs as committed."""

import argparse
import csv
import html
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
    pages = {str(path.relative_to(built)): path.read_text() for path in built.rglob("*.html")}
    assert "u(g) = |g|^p sgn(g)," in re.sub(r"<[^>]+>", "", pages["api/optimizers.html"])
    assert pages["tutorial.html"].count("data:image/png;base64,") + pages["tutorial.html"].count("_images/") == 2
    for page in pages.values():  # nothing is fetched from elsewhere when a page is read
        assert not re.search(r"""<(?:script|img)[^>]* src="(?:https?:)?//""", page)
        assert not re.search(r"""<link[^>]*stylesheet[^>]* href="(?:https?:)?//""", page)
        assert 'class="problematic"' not in page


def words(page):
    """What a reader sees of a built page, in one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.read_text())).split())


#: What a newcomer types into the search box, and the page whose title must answer.
SEARCHES = {
    "install": "install", "GPU": "install", "wheel": "install", "macOS": "install", "warmup": "howto/schedules",
    "masks": "howto/parameters", "dataset": "howto/dataset", "SLURM": "howto/cluster", "seaborn": "howto/reading",
    "notebook": "howto/sweep", "figures": "howto/figures", "progress": "faq", "determinism": "faq", "FAILS": "faq",
    "engines": "engines", "cite": "citing", "gallery": "gallery", "glossary": "glossary", "changelog": "changelog",
    "contribute": "contributing", "ctrl": "results", "SIGTERM": "results", "watch": "report", "conda": "install",
    "BatchNorm": "howto/flax",
}  # fmt: skip


@pytest.mark.parametrize(("query", "page"), SEARCHES.items())
def test_a_search_finds_the_page_by_a_title(built, query, page):
    from sphinx.search.en import SearchEnglish

    text = (built / "searchindex.js").read_text()
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    found = index["titleterms"][SearchEnglish({}).stem(query.lower())]
    assert page in [index["docnames"][i] for i in ([found] if isinstance(found, int) else found)]


def test_the_gallery_shows_every_picture_with_its_verdicts(built):
    page = (built / "gallery.html").read_text()
    shown = set(re.findall(r'src="_images/(\w+)\.png"', page))
    assert shown == {path.stem for path in (ROOT / "figures" / "gallery").glob("*.png")}
    assert len(re.findall(r'href="[\w/]+\.html">(?:<[^>]*>)*?<img', page)) == len(shown), (
        "every thumbnail leads to its page"
    )
    with (ROOT / "figures" / "gallery" / "claims_kernels.csv").open() as file:
        rows = list(csv.DictReader(file))
    for verdict in ("HOLDS", "UNDECIDED", "FAILS"):
        ids = list(dict.fromkeys(row["claim"] for row in rows if row["verdict"] == verdict))
        assert f"{verdict}: {', '.join(ids)}" in words(built / "gallery.html")


def test_every_table_of_claims_is_shown_or_linked(built):
    pages = "".join(path.read_text() for path in [*DOCS.glob("experiments/*.md"), DOCS / "gallery.md"])
    for table in (ROOT / "figures" / "gallery").glob("claims*.csv"):
        assert table.name in pages
    shown = words(built / "experiments" / "restore.html")
    assert "M6 (ours)" in shown
    assert "HOLDS (12/12)" in shown


def parsers(parser, path=()):
    """A parser and the parsers of its commands, with the words that lead to them."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from parsers(below, (*path, name))


def test_the_command_line_page_has_every_command_option_experiment_and_target(built):
    from jaxsign.cli.command import command_parser
    from jaxsign.cli.experiment import experiment_parser
    from jaxsign.plot.script import figure_parser

    shown = words(built / "command_line.html")
    for make in (command_parser, experiment_parser, figure_parser):
        for path, parser in parsers(make()):
            assert " ".join(["jaxsign", *path]) in shown
            for option in (name for action in parser._actions for name in action.option_strings):
                assert option in ("-h", "--help") or option in shown
    for sweep in (ROOT / "sweeps").glob("*.py"):
        assert f"python sweeps/{sweep.name}" in shown or sweep.stem == "presets"
    for target in re.findall(r"^([a-z0-9-]+):.*?##", (ROOT / "Makefile").read_text(), re.MULTILINE):
        assert f"make {target}" in shown


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    prose = re.sub(r"```.*?```", "", re.sub(r"\]\([^)]*\)", "]", text), flags=re.DOTALL)
    assert 300 <= len(re.findall(r"\w[\w'.,^-]*", prose)) <= 800
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert len(links) > 20
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_what_is_to_be_cited_is_this_version():
    version = jaxsign.__version__
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{version}}}" in (DOCS / "citing.md").read_text()


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
