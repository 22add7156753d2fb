"""Every example in a docstring of jaxsign, in the README and in the documentation runs and shows what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import jaxsign

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = ["jaxsign", *sorted(found.name for found in pkgutil.walk_packages(jaxsign.__path__, "jaxsign."))]
ROOT = Path(jaxsign.__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert failed == 0


@pytest.mark.skipif(not README.exists(), reason="no README")
def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"^```.*$", "", README.read_text(), flags=re.MULTILINE)  # a fence ends an example's output
    examples = doctest.DocTestParser().get_doctest(text, {}, "README.md", str(README), 0)
    assert examples.examples
    assert doctest.DocTestRunner(optionflags=FLAGS).run(examples, clear_globs=False).failed == 0
    # A run that never reached the level would be NaN, and mean("seed") would pass over it.
    assert jaxsign.at_train_loss(examples.globs["ds"], 0.3)["test_error"].notnull().all()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs").with_suffix("")))
def test_pages(page, tmp_path, monkeypatch):
    """A page's Python blocks are one program: plain code is executed, sessions are compared with what they show."""
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(), {"__name__": page.stem}
    for block in FENCE.finditer(text):
        code, line = block[1], text[: block.start(1)].count("\n")
        if ">>>" in code:
            session = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), line)
            session.globs = names
            assert doctest.DocTestRunner(optionflags=FLAGS).run(session, clear_globs=False).failed == 0
        else:
            file = tmp_path / f"line_{line + 1}.py"  # a file, so that functions have a source to be recognised by
            file.write_text(code)
            exec(compile(code, str(file), "exec"), names)
    assert len(FENCE.findall(text)) == len(re.findall(r"^[ \t]*```[ \t]*py", text, re.MULTILINE | re.IGNORECASE))


def test_every_page_has_a_results_directory_of_its_own():
    """A reader who tries two pages in one folder is not refused with "belongs to another definition"."""
    pages = {}
    for page in [README, *PAGES]:
        for name in set(re.findall(r'(?:out=|Path\()"(results/\w+)"', page.read_text())):
            pages.setdefault(name, []).append(page.name)
    assert len(pages) >= 6
    assert {name: found for name, found in pages.items() if len(found) > 1} == {}
