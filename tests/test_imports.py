"""Imports go down only: who may import whom, what loads late, which files never train."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import jaxsign

PACKAGE = Path(jaxsign.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
#: From the ground up. A room imports from rooms of lower layers, and from itself if it is a folder.
LAYERS = [
    {"validation"},
    {"compilation"},
    {"optimizers"},
    {"store"},
    {"analysis"},
    {"training"},
    {"systems"},
    {"theory"},
    {"sweep", "claims"},
    {"trajectories", "plot"},
    {"report"},
    {"cli"},
    {"__main__"},
]
#: Whatever the layers allow.
NEVER = {
    **dict.fromkeys(["training", "sweep", "store", "optimizers", "analysis"], frozenset({"systems", "theory"})),
    **dict.fromkeys(["analysis", "claims", "plot", "report"], frozenset({"training", "sweep"})),
}
LATE = {"flax", "jinja2", "xarray", "zarr", "orbax", "matplotlib", "tqdm", "platformdirs", "scipy", "pandas"}


def room(path):
    """The top-level name of a file inside the package: "training" of training.py, "sweep" of sweep/run.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree):
    """(dotted names, whether the import runs when the module is loaded) of every import of a file."""
    inside = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(scope, ast.If) and getattr(scope.test, "id", None) == "TYPE_CHECKING")
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield [alias.name for alias in node.names], id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield [f"{node.module}.{alias.name}" for alias in node.names], id(node) not in inside


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_and_heavy_packages_load_late(path):
    own = room(path)
    level = {name: height for height, layer in enumerate(LAYERS) for name in layer}
    assert own == "__init__" or own in level, f"give {own} a place in LAYERS"
    for names, loading in imported(ast.parse(path.read_text())):
        tops = {name.split(".")[0] for name in names}
        assert not tops & {"sweeps", "figures", "tests"}
        assert not (loading and tops & LATE), f"import {tops & LATE} inside the function that needs it"
        for other in (name.split(".")[1] for name in names if name.startswith("jaxsign.")):
            if own not in ("__init__", other):
                assert level[other] < level[own], f"{own} imports {other}, which is not below it"
                assert other not in NEVER.get(own, ()), f"{own} must not know {other}"
    assert path.stem != "utils"


def test_importing_jaxsign_loads_nothing_heavy_that_jax_and_optax_do_not():
    program = "import sys, jax, optax; before = set(sys.modules); import jaxsign; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded = set(done.stdout.split())
    assert not {name.split(".")[0] for name in loaded} & LATE
    # Half of the time that an import would take: Pallas, a parser of XML, and the claims of all experiments.
    assert not loaded & {"jax.extend", "xml.etree", "jaxsign.claims.catalogue"}


def test_public_names_are_explicit_and_no_submodules():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    others = [node for node in tree.body if not isinstance(node, ast.Expr | ast.ImportFrom)]
    assert all(
        ast.unparse(node).startswith(("import sys", "__version__ =", "_sys.modules['jaxsign.")) for node in others
    )
    names = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname == alias.name for alias in names)  # explicit re-exports
    modules = {room(path) for path in FILES}
    for alias in names:
        value = getattr(jaxsign, alias.name)
        if not inspect.ismodule(value):
            assert alias.name not in modules
            assert value.__doc__


@pytest.mark.parametrize("name", ["curvature", "landscape", "plot", "presets", "report", "theory"])
def test_public_modules_are_imported_by_their_public_names(name):
    assert importlib.import_module(f"jaxsign.{name}") is getattr(jaxsign, name)


def test_trajectories_import_no_particular_system():
    for path in sorted((PACKAGE / "trajectories").glob("*.py")):
        for names, _ in imported(ast.parse(path.read_text())):
            systems = [name for name in names if name.startswith("jaxsign.systems.")]
            assert systems in ([], ["jaxsign.systems.by_public_name"]), path.name


@pytest.mark.parametrize("folder", ["figures", "sweeps"])
def test_scripts_stay_in_their_room(folder):
    for path in sorted((PACKAGE.parent / folder).glob("*.py")):
        tree = ast.parse(path.read_text())
        called = {getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(tree)}
        called |= {name.split(".")[-1] for names, _ in imported(tree) for name in names}
        if folder == "figures":
            assert not called & {"train", "run_sweep", "make_train"}, f"{path.name} must not train"
        assert ast.get_docstring(tree), path.name
