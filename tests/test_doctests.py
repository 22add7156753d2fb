"""Every example in a docstring of jaxsign and in the README runs and shows what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import jaxsign

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = ["jaxsign", *sorted(found.name for found in pkgutil.walk_packages(jaxsign.__path__, "jaxsign."))]
README = Path(jaxsign.__file__).parents[1] / "README.md"


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
