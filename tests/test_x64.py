"""The tests marked x64 once more, in one process with 64-bit floats."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("marked", ["x64 and not slow", pytest.param("x64 and slow", marks=pytest.mark.slow)])
def test_marked_tests_pass_with_64_bit_floats(marked):
    folder = Path(__file__).parent
    files = [str(file) for file in sorted(folder.rglob("test_*.py")) if "mark.x64" in file.read_text()]
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    options += ["-m", marked, "-o", "addopts=--strict-markers"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"JAXSIGN_TEST_X64": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=folder.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
