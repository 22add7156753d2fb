"""Which experiments and figures come with jaxsign, and how are they run, drawn and copied?"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxsign.validation.messages import counted, say, show
from jaxsign.validation.values import known, local_path

PACKAGE = Path(__file__).parents[1]
#: Modules that scripts share, which are no scripts themselves.
SHARED = {"presets"}


def scripts(kind: str) -> dict[str, Path]:
    """{name: file} of what comes with jaxsign.

    A wheel holds the scripts inside the package; a checkout has them beside it.

    Args:
      kind: "sweeps" or "figures".

    Raises:
      ValueError: if there are none, as in an incomplete installation.

    Examples:
      >>> "dynamics" in scripts("sweeps"), "presets" in scripts("sweeps")
      (True, False)
    """
    inside = PACKAGE / "experiments" / kind
    files = sorted((inside if inside.is_dir() else PACKAGE.parent / kind).glob("*.py"))
    if not files:
        raise ValueError(f"no {kind} come with this installation of jaxsign: install the wheel or use a checkout")
    return {file.stem: file for file in files if file.stem not in SHARED}


def script(kind: str, name: str) -> Path:
    """The file of one experiment or figure.

    Raises:
      ValueError: if there is none of this name; the message lists those that there are.
    """
    found = scripts(kind)
    return found[known({"sweeps": "experiment", "figures": "figure"}[kind], name, found)]


def show_list(kind: str) -> None:
    """Prints a line a script: its name and what its docstring says first."""
    found = scripts(kind)
    for name, file in found.items():
        first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        show(f"{name:<{max(map(len, found))}}  {first}")


def run(name: str, options: Sequence[str]) -> int:
    """Runs an experiment as `python sweeps/NAME.py OPTIONS` does, in place of this process.

    Args:
      name: as listed.
      options: of the script; without --out the results go into results/NAME, with --tiny into results/tiny/NAME.
    """
    file = script("sweeps", name)
    given = list(options)
    if not any(option == "--out" or option.startswith("--out=") or option in ("-h", "--help") for option in given):
        out = Path("results", "tiny", name) if "--tiny" in given else Path("results", name)
        given += ["--out", str(out)]
        say(f"jaxsign run {name} {' '.join(given)}")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(file), *given])


def draw(names: Sequence[str], results: str, out: str | None) -> int:
    """Draws figures from results; without names, all those whose results are there.

    Args:
      names: as listed, or none.
      results: folder of results directories, as the experiments' commands lay it out.
      out: folder for the pictures; None: "figures" in that folder.

    Returns:
      How many of them could not be drawn; each has said why in one line.
    """
    local_path("--results", results)
    out = os.path.join(results, "figures") if out is None else out
    local_path("--out", out)
    failed, every = {}, scripts("figures")
    absent = [] if names else [name for name, file in every.items() if not _has_results(file, Path(results))]
    if absent:
        show(f"left out, no results in {results} (jaxsign run NAME makes them): {', '.join(absent)}")
        if (tiny := Path(results, "tiny")).is_dir():
            show(f"those of --tiny: jaxsign figures --results {tiny}")
    for name in names or [name for name in every if name not in absent]:
        command = [sys.executable, str(script("figures", name)), "--results", results, "--out", out]
        done = subprocess.run(command, check=False, capture_output=not names, text=True)
        if done.returncode:
            failed[name] = (done.stderr or "").strip().splitlines()[-1:]
        elif not names:
            for line in done.stdout.splitlines():
                show(line)
    for name, words in [] if names else failed.items():
        show(f"left out: {name}: {' '.join(words).removeprefix(f'{name}.py: ')}")
    return len(failed) + len(absent)


def _has_results(file: Path, results: Path) -> bool:
    """Whether some of the folders that a figure reads are there; its docstring names them as DIR/NAME."""
    read = re.findall(r"\bDIR/(\w+)", ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")
    return not read or any((results / name).is_dir() for name in read)


def copy(folder: str) -> int:
    """Copies experiments and figures into a folder, as sweeps/ and figures/, to be read and changed.

    Args:
      folder: new or empty.

    Raises:
      ValueError: if it holds anything.
    """
    target = local_path("DIR", folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"DIR must be a new or empty folder, got {folder!r}, which holds something")
    count = 0
    for kind in ("sweeps", "figures"):
        source = next(iter(scripts(kind).values())).parent
        (target / kind).mkdir(parents=True)
        for file in sorted(source.glob("*.py")):
            shutil.copyfile(file, target / kind / file.name)
            count += 1
    first = Path(folder, "sweeps", "dynamics.py")
    show(f"{counted(count, 'file')} in {folder}; for example: python {first} --tiny --out results/tiny")
    return 0
