"""A sweep is recognised by what it computes: refused and accepted changes, parts, results of version 0.1."""

import dataclasses
import functools
import importlib.util
import itertools
import json
import re
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.cli import status
from jaxsign.store import environment, verify
from jaxsign.store.manifest import read_manifest
from jaxsign.sweep.identity.definition import content_hash

DATA = Path(__file__).parents[2] / "data"
#: Directories of `tests/data`: of version 0.1, and of manifests of format 2 before modules moved into folders.
VERSIONS = ["results-0.1", "results-format-2"]

HELPERS = """
import functools

import jax
import jax.numpy as jnp

WEIGHT = 2.0


def times(factor):
    def decorate(function):
        @functools.wraps(function)
        def inner(*arguments):
            return factor * function(*arguments)
        return inner
    return decorate


@times(1.0)
def residual(params, data):
    return WEIGHT * (data[0] @ params["w"] - data[1])


def square(x):
    return smooth(x)


@jax.custom_vjp
def smooth(x):
    return x ** 2


def square_pushed(x):
    return x ** 2, x


def square_pulled(x, g):
    return (2.0 * x * g,)


smooth.defvjp(square_pushed, square_pulled)
"""

MODULE = """
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsign as js
import HELPERS as helpers

SLOPE = 1.0
TABLE = np.array([1.0, -2.0, 0.5], np.float32)
RATES = {"fast": 0.5, "slow": [0.1, 0.2]}


class Settings:
    start = 0.1
    offset = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    scale: float = 1.0
    width: float = 1.0

    derived = {"double": "scale"}

    def with_axis(self, problem, name, value):
        return dataclasses.replace(self, scale=2.0 * value)


def points(key, hyper):
    u = jax.random.key_data(key).astype(jnp.zeros(()).dtype) / 2.0**32
    return jnp.sin(jnp.arange(12.0).reshape(4, 3) * (1.0 + u[0]) + u[1]) * hyper.scale


def make(power):
    def loss(params, data, hyper):
        total = jnp.mean(helpers.square(helpers.residual(params, data)))
        return SLOPE * total ** power
    return loss


@functools.cache
def system(problem):
    loss = make(1.0)

    def sample(key, hyper, shared):
        x = points(key, hyper)
        return x, x @ jnp.asarray(TABLE)

    return js.Task(
        sample=sample,
        init=lambda key, data, hyper: {"w": jnp.full(3, Settings.start)},
        loss=loss,
        observe=lambda params, data, test, hyper: {"train_loss": loss(params, data, hyper)},
        name="line",
    )


def clipped(g):
    return jnp.clip(g, -RATES["fast"], RATES["fast"])


def transform(learning_rate):
    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -learning_rate * clipped(g), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def rate(step):
    return 0.1 / (1.0 + step)


def norm(params, data, test, hyper):
    return jnp.sum(helpers.square(params["w"]))


def last(trace):
    return {"last": trace["train_loss"][-1]}


def build(seeds=1, double=(0.5, 1.0), optimizers=("mine", "gd", "scheduled")):
    own = {
        "mine": js.grid(transform, learning_rate=[0.1]), "gd": js.grid(optax.sgd, learning_rate=[0.1]),
        "scheduled": js.grid(optax.sgd, learning_rate=[rate, optax.cosine_decay_schedule(0.1, 10)]),
    }
    return js.Sweep(
        system=system, problem=None, hyper=Hyper(), axes={"double": list(double), "seed": seeds}, steps=6, record=3,
        optimizers={name: own[name] for name in optimizers}, observables=["train_loss", norm], summary=last,
    )
"""

COUNT = itertools.count()


@pytest.fixture
def load(tmp_path):
    """`load(changes)`: the module, with texts replaced, from files and under names of its own."""
    names = []

    def imported(folder, name, text):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        names.append(name)
        spec.loader.exec_module(module)
        return module

    def load(*changes):
        number, texts = next(COUNT), [HELPERS, MODULE]
        for old, new in changes:
            assert sum(text.count(old) for text in texts) >= 1, old
            texts = [text.replace(old, new) for text in texts]
        helpers = f"helpers_{number}"
        imported(tmp_path / f"code_{number}", helpers, texts[0])
        text = texts[1].replace("import HELPERS as", f"import {helpers} as")
        return imported(tmp_path / f"code_{number}", f"experiment_{number}", text)

    yield load
    for name in names:
        del sys.modules[name]


#: One optimizer of the module, where the others would only be more of the same.
MINE = {"optimizers": ["mine"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Finished directories of the module as it is: (all, with one optimizer)."""
    folder = tmp_path_factory.mktemp("made")
    for name, text in (("identity_helpers", HELPERS), ("identity_experiment", MODULE)):
        (folder / f"{name}.py").write_text(text.replace("import HELPERS as", "import identity_helpers as"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        module = importlib.import_module("identity_experiment")
        js.run_sweep(module.build(), folder / "out", lane_width=2)
        js.run_sweep(module.build(**MINE), folder / "mine", lane_width=2)
    return folder / "out", folder / "mine"


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "out")


@pytest.fixture
def mine(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "mine")


def files(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and "locks" not in f.parts}


def values(ds):
    return {name: ds[name].values for name in ds.data_vars}


CHANGED = {
    "a module constant": (("SLOPE = 1.0", "SLOPE = 1.5"), "system: SLOPE 1.0 -> 1.5"),
    "a constant of another module": (("WEIGHT = 2.0", "WEIGHT = 3.0"), "system: WEIGHT 2.0 -> 3.0"),
    "the body of a helper": (("return x ** 2", "return x ** 2 + 1e-3 * x"), "system: smooth has changed"),
    "a function of a helper": (("jnp.sin(", "jnp.cos("), "system: points has changed"),
    "a closed-over number": (("make(1.0)", "make(2.0)"), "system: system has changed"),
    "a class attribute": (("start = 0.1", "start = 0.2"), "system: Settings.start 0.1 -> 0.2"),
    "a captured array": (("[1.0, -2.0, 0.5]", "[1.0, -2.0, 0.25]"), "system: TABLE has changed"),
    "a dict of constants": (('"fast": 0.5', '"fast": 0.25'), "optimizers.mine: RATES['fast'] 0.5 -> 0.25"),
    "a helper of the optimizer": (("jnp.clip(g, ", "jnp.clip(2.0 * g, "), "optimizers.mine: clipped has changed"),
    "a schedule": (("return 0.1 / (1.0", "return 0.1 / (2.0"), "optimizers.scheduled: rate has changed"),
    "an observable": (('helpers.square(params["w"])', 'params["w"]'), "observables.norm: norm has changed"),
    "the summary": (('["train_loss"][-1]', '["train_loss"][0]'), "summary: last has changed"),
    "the numbers of an axis": (("scale=2.0 * value", "scale=3.0 * value"), "hyper_code: "),
    "a rule of a derivative": (("return (2.0 * x * g,)", "return (3.0 * x * g,)"), "system: square_pulled has changed"),
    "a decorator's number": (("@times(1.0)", "@times(2.0)"), "system: residual.factor 1.0 -> 2.0"),
    "the loss itself": (("return SLOPE * total", "return SLOPE * 3.0 * total"), "system: make has changed"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "line"), CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("seeds", [1, 2], ids=["loaded", "extended"])
def test_a_change_of_what_is_computed_is_refused_and_named(load, out, change, line, seeds):
    before, module = files(out), load(change)
    with pytest.raises(ValueError, match="belongs to another definition") as caught:
        js.run_sweep(module.build(seeds), out)
    assert line in str(caught.value)
    assert 'accept="reason"' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(out) == before


CLIPPED = 'def clipped(g):\n    return jnp.clip(g, -RATES["fast"], RATES["fast"])\n'
INIT = 'def init(key, data, hyper):\n        return {"w": jnp.full(3, Settings.start)}'
SAME = {
    "another file and module name": [],
    "a comment": [("    total = ", "    # the mean\n        total = ")],
    "a comment beside the code": [("SLOPE = 1.0", "SLOPE = 1.0  # was 2.0 once")],
    "documentation": [("def system(problem):", 'def system(problem):\n    """The system."""')],
    "layout": [("return SLOPE * total ** power", "return (\n            SLOPE\n            * total**power\n        )")],
    "a renamed local": [("total", "mean_square")],
    "a renamed helper": [("square(", "quadrat(")],
    "a renamed function of the system": [("def sample(", "def draw("), ("sample=sample", "sample=draw")],
    "a renamed summary": [("def last(", "def final("), ("summary=last", "summary=final")],
    "annotations": [("def square(x):", "def square(x: object) -> object:")],
    "another order of functions": [
        (CLIPPED, ""), ("def points(key", f"{CLIPPED}\n\ndef points(key"),
    ],
    "a constant that nothing reads": [("TABLE =", "UNUSED = 3.0\nTABLE =")],
    "an attribute that nothing reads": [("offset = 0.0", "offset = 1.0")],
    "a helper that is jitted": [("def square(x)", "@jax.jit\ndef square(x)")],
    "a part of a line made a function": [
        ("def make(power):", "def raised(x, power):\n    return SLOPE * x ** power\n\n\ndef make(power):"),
        ("return SLOPE * total ** power", "return raised(total, power)"),
    ],
    "a lambda made a function": [
        ("    return js.Task(", f"    {INIT}\n\n    return js.Task("),
        ('init=lambda key, data, hyper: {"w": jnp.full(3, Settings.start)}', "init=init"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_what_computes_the_same_is_the_same_sweep(load, out, changes, capsys):
    before = files(out)
    js.run_sweep(load(*changes).build(), out)
    assert capsys.readouterr().err == f"{out}: finished before, loaded\n"
    assert files(out) == before


def test_a_global_that_is_set_while_the_process_lives_is_a_change(load, tmp_path):
    module, out = load(), tmp_path / "out"
    js.run_sweep(module.build(**MINE), out)
    module.SLOPE = 4.0
    with pytest.raises(ValueError, match=r"system: SLOPE 1\.0 -> 4\.0"):
        js.run_sweep(module.build(2, **MINE), out)
    module.SLOPE = 1.0
    module.make.__globals__["helpers"].times.__globals__["WEIGHT"] = 5.0
    with pytest.raises(ValueError, match=r"system: WEIGHT 2\.0 -> 5\.0"):
        js.run_sweep(module.build(2, **MINE), out)


def test_data_that_no_source_shows_are_seen_in_the_program(load, out, tmp_path):
    numbers = tmp_path / "numbers.npy"
    np.save(numbers, np.array([1.0, -2.0, 0.5], np.float32))
    reads = ("TABLE = np.array([1.0, -2.0, 0.5], np.float32)", f"TABLE = np.load({str(numbers)!r})")
    inside = ("jnp.asarray(TABLE)", f"jnp.asarray(np.load({str(numbers)!r}))")
    js.run_sweep(load(reads).build(), out)
    js.run_sweep(load(inside).build(), out)
    np.save(numbers, np.array([1.0, -2.0, 0.75], np.float32))
    with pytest.raises(ValueError, match="belongs to another definition"):
        js.run_sweep(load(inside).build(), out)


def extended(module, path):
    """The results after one more seed; every stored number is there still."""
    old = values(js.open_results(path))
    ds = js.run_sweep(module.build(2), path)
    for name, was in old.items():
        assert ds[name].isel(seed=slice(1)).values.tobytes() == was.tobytes(), name
    assert (ds["status"] == 0).all()
    return ds


def other_versions(path, **versions):
    """Rewrites a manifest as if other versions had made it, with programs of theirs."""
    manifest = read_manifest(path)
    manifest["versions"] |= versions
    for entry in manifest["computation"]["entries"].values():
        entry["with"] |= versions
        for functions in entry["programs"].values():
            functions |= {name: f"{int(digest, 16) ^ 1:016x}" for name, digest in functions.items()}
    tools_write(path, manifest)


def tools_write(path, manifest):
    from jaxsign.store.manifest import write_manifest

    write_manifest(path, {k: v for k, v in manifest.items() if k not in ("format", "checksum")})


def test_another_version_of_jax_locks_nobody_out_and_is_warned_about(load, out, capsys):
    other_versions(out, jax="0.9.0")
    capsys.readouterr()
    extended(load(), out)
    lines = [line for line in capsys.readouterr().err.splitlines() if "jax 0.9.0 -> " in line]
    assert len(lines) == 1
    assert "the sources of your functions are the same" in lines[0]


@pytest.mark.parametrize("name", [name for name in CHANGED if name != "the loss itself"])
def test_where_programs_cannot_be_compared_sources_are(load, out, name):
    other_versions(out, jax="0.9.0")
    change, line = CHANGED[name]
    with pytest.raises(ValueError, match="belongs to another definition") as caught:
        js.run_sweep(load(change).build(2), out)
    assert line in str(caught.value)


@pytest.mark.parametrize("name", [
    "another file and module name", "a comment", "documentation", "layout", "a renamed local", "a renamed helper",
    "annotations", "another order of functions", "a constant that nothing reads",
])  # fmt: skip
def test_sources_are_compared_in_normal_form(load, out, name):
    other_versions(out, jax="0.9.0")
    js.run_sweep(load(*SAME[name]).build(), out)


def test_another_optax_is_warned_about_once_where_something_is_run(load, out, monkeypatch, capsys):
    manifest = read_manifest(out)
    manifest["versions"]["optax"] = "0.2.5"
    tools_write(out, manifest)
    module = load()
    js.run_sweep(module.build(), out)
    assert "optax 0.2.5" not in capsys.readouterr().err  # nothing is run
    js.run_sweep(module.build(2), out)
    assert capsys.readouterr().err.count("optax 0.2.5 -> ") == 1


def test_draws_of_another_flag_are_not_mixed(load, out):
    module = load()
    assert read_manifest(out)["definition"]["threefry_partitionable"] is True
    before = files(out)
    jax.config.update("jax_threefry_partitionable", False)
    try:
        with pytest.raises(ValueError, match="threefry_partitionable: true -> false"):
            js.run_sweep(module.build(2), out)
    finally:
        jax.config.update("jax_threefry_partitionable", True)
    assert files(out) == before


def test_a_change_is_accepted_with_a_reason_and_leaves_a_trace(load, out, capsys):
    changed = load(("SLOPE = 1.0", "SLOPE = 1.5"))
    ds = js.run_sweep(changed.build(2), out, accept="the slope was\n wrong")
    assert (ds["status"] == 0).all()
    (note,) = read_manifest(out)["accepted"]
    assert note["reason"] == "the slope was wrong"
    assert note["differences"] == ["system: SLOPE 1.0 -> 1.5"]
    assert note["date"].startswith("20")
    assert note["versions"]["jax"] == jax.__version__
    capsys.readouterr()
    status.print_status(str(out))
    assert "the slope was wrong (system: SLOPE 1.0 -> 1.5)" in capsys.readouterr().out
    assert status.print_verify(str(out))
    assert "the slope was wrong (system: SLOPE 1.0 -> 1.5)" in capsys.readouterr().out
    assert "the slope was wrong" in js.report.render({"mine": ds})
    js.run_sweep(changed.build(2), out)  # known from now on
    with pytest.raises(ValueError, match=r"SLOPE 1\.5 -> 1\.0"):
        js.run_sweep(load().build(2), out)


def test_what_was_stored_before_an_accepted_change_stays_and_what_is_run_has_the_new_code(load, mine):
    old = values(js.open_results(mine))
    changed = load(("SLOPE = 1.0", "SLOPE = 1.5"))
    ds = js.run_sweep(changed.build(2, **MINE), mine, accept="a test")
    fresh = js.run_sweep(changed.build(2, **MINE), lane_width=2)
    for name, was in old.items():
        assert ds[name].isel(seed=slice(1)).values.tobytes() == was.tobytes()
        np.testing.assert_array_equal(ds[name].isel(seed=1), fresh[name].isel(seed=1))


def test_a_change_of_a_finished_sweep_can_be_accepted(load, mine):
    before = values(js.open_results(mine))
    changed = load(("return x ** 2\n", "return x * x * 1.0000001\n"))
    js.run_sweep(changed.build(**MINE), mine, accept="the same to rounding")
    assert read_manifest(mine)["accepted"][0]["reason"] == "the same to rounding"
    after = values(js.run_sweep(changed.build(**MINE), mine))
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


@pytest.mark.parametrize("reason", ["", "  ", 3, True])
def test_a_reason_is_words(load, out, reason):
    with pytest.raises(ValueError, match="accept must be the reason for a change in words, got accept="):
        js.run_sweep(load().build(), out, accept=reason)


def test_accepting_nothing_says_so(load, mine, tmp_path, capsys):
    before, module = files(mine), load()
    js.run_sweep(module.build(**MINE), mine, accept="why not")
    assert "accept='why not' is not kept: no code differs" in capsys.readouterr().err
    assert files(mine) == before
    js.run_sweep(module.build(**MINE), tmp_path / "new", accept="why not")
    assert "accepted" not in read_manifest(tmp_path / "new")
    with pytest.raises(ValueError, match="needs out="):
        js.run_sweep(module.build(**MINE), accept="why not")


def test_values_and_shapes_cannot_be_accepted(load, mine):
    before, module = files(mine), load()
    with pytest.raises(ValueError, match="steps: 6 -> 9"):
        js.run_sweep(dataclasses.replace(module.build(**MINE), steps=9), mine, accept="longer")
    wider = load(('jnp.sum(helpers.square(params["w"]))', 'helpers.square(params["w"])'))
    with pytest.raises(ValueError, match=r"accept= cannot change what is stored: norm float32"):
        js.run_sweep(wider.build(**MINE), mine, accept="all of it")
    assert files(mine) == before


@pytest.mark.parametrize("accept", [None, "because"])
def test_the_numbers_of_a_built_transform_are_values_and_shown_alone(load, tmp_path, accept):
    module = load()

    def made(transform, seeds=1):
        return dataclasses.replace(module.build(seeds), optimizers={"a": transform})

    js.run_sweep(made(optax.adam(0.1)), tmp_path / "out")
    for transform, words in (
        (optax.adam(0.2), "optimizers.a: step_size -0.1 -> -0.2 (a change of values cannot be accepted"),
        (optax.adam(0.1, b2=0.99), "optimizers.a: b2 0.999 -> 0.99 (a change"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            js.run_sweep(made(transform, 2), tmp_path / "out", accept=accept)
    js.run_sweep(made(optax.adam(0.1), 2), tmp_path / "out")


def test_less_than_is_stored_is_loaded_lazily_in_the_order_asked(load, tmp_path, capsys):
    module, path = load(), tmp_path / "out"
    whole = js.run_sweep(module.build(3), path, lane_width=2)
    before = files(path)
    capsys.readouterr()
    part = module.build([2, 0], [1.0], ["scheduled", "mine"])
    ds = js.run_sweep(part, path)
    assert capsys.readouterr().err == f"{path}: finished before, loaded in part: 6 of 24 runs\n"
    assert files(path) == before
    assert ds["seed"].values.tolist() == [2, 0]
    assert ds["double"].values.tolist() == [1.0]
    assert ds["optimizer"].values.tolist() == [label for label, _, _ in part.optimizer_points]
    assert not ds["train_loss"].variable._in_memory
    expected = whole.isel(seed=[2, 0], double=[1], optimizer=[2, 3, 0])
    for name in whole.data_vars:
        assert ds[name].values.tobytes() == expected[name].values.tobytes(), name
    fresh = js.run_sweep(part)
    assert set(ds.coords) == set(fresh.coords)
    for name in fresh.coords:
        assert ds[name].values.tolist() == fresh[name].values.tolist() or ds[name].isnull().any(), name
    manifest = json.loads(ds.attrs["manifest"])
    assert manifest["definition"]["seeds"] == [2, 0]
    assert manifest["runs"]["total"] == 6
    assert manifest["part_of"] == read_manifest(path)["hash"]


def test_a_part_of_other_code_is_refused(load, out):
    with pytest.raises(ValueError, match="system: SLOPE"):
        js.run_sweep(load(("SLOPE = 1.0", "SLOPE = 2.0")).build(double=[1.0]), out)
    changed = load(('"fast": 0.5', '"fast": 0.25'))  # of an optimizer that is not asked for
    js.run_sweep(changed.build(optimizers=["gd"]), out)


def test_only_what_is_asked_for_is_run(load, tmp_path):
    module, path = load(), tmp_path / "out"
    js.run_sweep(module.build(3), path, shard=(0, 3), lane_width=2)
    begun = js.open_results(path)["status"].values >= 0
    stored = read_manifest(path)
    part = module.build([2], optimizers=["mine"])
    ds = js.run_sweep(part, path)
    assert (ds["status"] == 0).all()
    after = js.open_results(path)
    done = after["status"].values >= 0
    expected = begun.copy()
    expected[:, 0, 2] = True
    np.testing.assert_array_equal(done, expected)
    assert read_manifest(path)["definition"] == stored["definition"]
    whole = js.run_sweep(module.build(3), path)
    fresh = js.run_sweep(module.build(3), lane_width=2)
    for name in fresh.data_vars:
        np.testing.assert_array_equal(whole[name], fresh[name])


def test_more_and_less_at_once_is_refused(load, out):
    with pytest.raises(ValueError, match=r"stored and not asked for .*not both at once"):
        js.run_sweep(load().build(2, double=[1.0]), out)


class Callable:
    """A schedule as an object."""

    def __init__(self, peak):
        self.peak = peak

    def __call__(self, step):
        return self.peak / (1.0 + step)


@dataclasses.dataclass(frozen=True)
class Decay:
    peak: float

    def __call__(self, step):
        return self.peak * 0.9**step


def slower(step, factor):
    return 0.1 * factor / (1.0 + step)


def odd_optimizers():
    import functools

    masked = optax.masked(optax.sgd(0.1), mask=lambda params: jax.tree.map(lambda leaf: True, params))
    return {
        "schedule": js.grid(optax.sgd, learning_rate=[optax.cosine_decay_schedule(0.1, 20)]),
        "joined": js.grid(optax.sgd, learning_rate=[
            optax.join_schedules([optax.constant_schedule(0.1), optax.linear_schedule(0.1, 0.0, 5)], [3])]),
        "object": js.grid(optax.sgd, learning_rate=[Callable(0.1)]),
        "dataclass": js.grid(optax.sgd, learning_rate=[Decay(0.1)]),
        "partial": js.grid(optax.sgd, learning_rate=[
            functools.partial(slower, factor=2.0), functools.partial(slower, factor=3.0)]),
        "lambda": js.grid(optax.sgd, learning_rate=[lambda step: 0.1 / (1.0 + step)]),
        "factory": js.grid(functools.partial(optax.sgd, momentum=0.5), learning_rate=[0.1], nesterov=[False, True]),
        "bare": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(lambda step: 0.1)),
        "masked": masked,
        "injected": optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(0.1, 0.0, 5)),
    }  # fmt: skip


def test_no_manifest_holds_a_memory_address_and_lanes_are_found_again(load, tmp_path):
    module = load()

    def build(seeds):
        return dataclasses.replace(
            module.build(seeds, [0.5]), optimizers=odd_optimizers(), summary=lambda trace: {"last": trace["norm"][-1]}
        )

    js.run_sweep(build(1), tmp_path / "out", lane_width=1)
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert " at 0x" not in text
    assert "0x" not in text
    stored = [str(label) for label in js.open_results(tmp_path / "out")["optimizer"].values]
    assert not [label for label in stored if "0x" in label]
    js.run_sweep(build(2), tmp_path / "out")
    groups = read_manifest(tmp_path / "out")["plan"]["groups"]
    assert {group["lane_width"] for group in groups} == {1}


def test_lambdas_are_told_apart_by_what_they_compute(load, tmp_path):
    module = load()

    def build(summary, rate=0.1):
        return dataclasses.replace(
            module.build(1, [0.5]), optimizers={"mine": optax.sgd(lambda step: rate)}, summary=summary
        )

    js.run_sweep(build(lambda trace: {"last": trace["norm"][-1]}), tmp_path / "out")
    js.run_sweep(build(lambda records: {"last": records["norm"][-1]}), tmp_path / "out")
    with pytest.raises(ValueError, match="summary: "):
        js.run_sweep(build(lambda trace: {"last": trace["norm"][0]}), tmp_path / "out")
    with pytest.raises(ValueError, match=r"optimizers\.mine: .*rate 0\.1 -> 0\.2"):
        js.run_sweep(build(lambda trace: {"last": trace["norm"][-1]}, 0.2), tmp_path / "out")


def test_extensions_compare_what_is_common(load, out):
    module = load()
    ds = js.run_sweep(module.build(2, [0.25, 0.5, 1.0]), out)
    assert (ds["status"] == 0).all()
    more = dataclasses.replace(module.build(2, [0.25, 0.5, 1.0]), optimizers={
        "another": optax.adam(0.1), **module.build().optimizers,
    })  # fmt: skip
    assert (js.run_sweep(more, out)["status"] == 0).all()
    entries = read_manifest(out)["computation"]["entries"]
    assert {"system", "summary", "observables.norm", "optimizers.mine", "optimizers.scheduled"} <= set(entries)
    assert "optimizers.gd" not in entries  # a package's alone: known by name, numbers and versions


def stored_before(name, tmp_path, version="results-0.1"):
    return shutil.copytree(DATA / version / name, tmp_path / name)


def lane_widths(path):
    return [group["lane_width"] for group in read_manifest(path)["plan"]["groups"]]


@pytest.fixture
def before():
    """The sweeps that version 0.1 stored, in a module that has moved since."""
    spec = importlib.util.spec_from_file_location("moved_since", DATA / "old_experiments.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["two_layer", "own"])
def test_results_of_earlier_versions_are_read_verified_and_loaded(before, tmp_path, name, version, capsys):
    path = stored_before(name, tmp_path, version)
    held = files(path)
    assert (js.open_results(path)["status"] == 0).all()
    assert verify.check_directory(path).verdict == "good"
    ds = js.run_sweep(before.BUILD[name](), path)
    assert capsys.readouterr().err == f"{path}: finished before, loaded\n"
    assert (ds["status"] == 0).all()
    assert files(path) == held


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["two_layer", "own"])
def test_results_of_earlier_versions_are_extended(before, tmp_path, name, version, capsys):
    path = stored_before(name, tmp_path, version)
    old = js.open_results(path)
    was, widths = values(old), lane_widths(path)
    ds = js.run_sweep(before.BUILD[name](3), path)
    assert (ds["status"] == 0).all()
    for variable, numbers in was.items():
        assert ds[variable].isel(seed=slice(2)).values.tobytes() == numbers.tobytes()
    manifest = read_manifest(path)
    assert lane_widths(path) == widths
    assert "0x" not in (path / "manifest.json").read_text()
    assert manifest["definition"]["system"]["name"] in ("jaxsign.two_layer", "moved_since.line")
    assert manifest["computation"]["engine"]
    capsys.readouterr()
    js.run_sweep(before.BUILD[name](3), path)
    assert capsys.readouterr().err == f"{path}: finished before, loaded\n"
    assert verify.check_directory(path).verdict == "good"


def test_a_part_of_results_of_version_0_1_is_loaded(before, tmp_path):
    path = stored_before("own", tmp_path)
    ds = js.run_sweep(before.own([1], [2.0], ["decayed"]), path)
    whole = js.open_results(path).isel(seed=[1], scale=[1], optimizer=[3])
    assert ds["train_loss"].values.tobytes() == whole["train_loss"].values.tobytes()


def test_a_changed_text_of_version_0_1_needs_a_reason(before, tmp_path):
    path = stored_before("own", tmp_path)

    def last(trace):
        return {"last": trace["train_loss"][0]}

    assert "computation" not in read_manifest(path)
    changed = dataclasses.replace(before.own(), summary=last)
    with pytest.raises(ValueError, match=r"summary\.source: .*accept="):
        js.run_sweep(changed, path)
    js.run_sweep(changed, path, accept="the first loss is what is wanted")
    assert read_manifest(path)["accepted"][0]["reason"].startswith("the first loss")
    js.run_sweep(changed, path)


def test_the_flags_of_a_session_are_recorded():
    assert environment.environment()["flags"]["threefry_partitionable"] is True


def test_accept_is_an_option_of_every_experiment(load, mine, capsys):
    main = js.sweep_cli(lambda args: {"mine": load(("SLOPE = 1.0", "SLOPE = 1.5")).build(**MINE)})
    assert main(["--out", str(mine)]) == 2
    assert "SLOPE 1.0 -> 1.5" in capsys.readouterr().err
    assert main(["--out", str(mine), "--accept", "a better slope"]) == 0
    assert read_manifest(mine)["accepted"][0]["reason"] == "a better slope"
    assert main(["--out", str(mine), "--accept", " "]) == 2


def test_numbers_of_transforms_that_version_0_1_stored_are_compared(before, tmp_path):
    path = stored_before("own", tmp_path)
    held = files(path)
    for name, other in (
        ("mine", before.scaled(0.2)),
        ("adam", optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))),
    ):
        changed = dataclasses.replace(before.own(), optimizers={**before.own().optimizers, name: other})
        with pytest.raises(ValueError, match=rf"optimizers\.{name}"):
            js.run_sweep(changed, path)
    assert files(path) == held


def test_packages_that_name_their_parts_otherwise_lock_nobody_out(before, tmp_path, capsys):
    path = stored_before("own", tmp_path)
    manifest = read_manifest(path)
    manifest["versions"]["optax"] = "0.2.5"
    text = json.dumps(manifest).replace(
        "optax.transforms._combining.chain.<locals>", "optax._src.combine.chained.<locals>"
    )
    renamed = json.loads(text)
    renamed["hash"] = content_hash(renamed["definition"])
    tools_write(path, renamed)
    ds = js.run_sweep(before.own(3), path)
    assert (ds["status"] == 0).all()
    assert "optax 0.2.5 -> " in capsys.readouterr().err
    changed = {**before.own().optimizers, "adam": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))}
    tools_write(path, renamed)
    with pytest.raises(ValueError, match=r"optimizers\.adam"):
        js.run_sweep(dataclasses.replace(before.own(), optimizers=changed), path)


def test_static_points_are_compared_each_and_may_grow(load, tmp_path):
    text = "def build("
    sized = (text, "@dataclasses.dataclass(frozen=True)\nclass Sizes:\n    n: int = 3\n\n\ndef build(")
    used = ("jnp.full(3, Settings.start)", "jnp.full(3, Settings.start * BONUS.get(problem.n, 1.0))")
    bonus = ("SLOPE = 1.0", "SLOPE = 1.0\nBONUS = {4: 2.0}")

    def build(module, *n):
        made = module.build(optimizers=["gd"])
        return dataclasses.replace(made, problem=module.Sizes(), axes={"n": list(n), "seed": 1}, summary=None)

    module, path = load(sized, used, bonus), tmp_path / "out"
    js.run_sweep(build(module, 3), path)
    other = load(sized, used, (bonus[0], "SLOPE = 1.0\nBONUS = {4: 3.0}"))
    js.run_sweep(build(other, 3), path)  # nothing that is stored would change
    js.run_sweep(build(other, 3, 4), path)
    with pytest.raises(ValueError, match=r"BONUS\[4\] 3\.0 -> 2\.0"):
        js.run_sweep(build(module, 3, 4), path)
    js.run_sweep(build(module, 3), path)


# --- what a stored sweep may not become without a word, in one process
FACTOR = [1.0]


@dataclasses.dataclass(frozen=True)
class Rates:
    """A number, and an axis that is computed into it by a helper of the class."""

    rate: float = 1.0
    derived: ClassVar = {"slowness": "rate"}

    @staticmethod
    def convert(value):
        return 1.0 / value

    def with_axis(self, problem, name, value):
        return dataclasses.replace(self, rate=self.convert(value))


jax.tree_util.register_dataclass(Rates, data_fields=["rate"], meta_fields=[])


def one_weight(**changes):
    """A system of two weights, with some functions replaced; a new Task at every call."""

    def observe(params, data, test, hyper):
        return {"train_loss": jnp.mean(data) * params["w"] ** 2, "a": params["w"], "b": params["v"]}

    def system(problem):
        task = js.Task(
            sample=lambda key, hyper, shared: FACTOR[0] * jnp.ones(3),
            init=lambda key, data, hyper: {"w": jnp.ones(()), "v": 2 * jnp.ones(())},
            loss=lambda params, data, hyper: hyper.rate * jnp.mean(data) * (params["w"] ** 2 + params["v"] ** 2),
            observe=observe,
        )
        return dataclasses.replace(task, **changes)

    return system


def of_one_weight(system, **changes):
    base = {
        "system": system, "problem": None, "hyper": Rates(), "steps": 3, "record": 1, "axes": {"seed": 2},
        "optimizers": {"gd": js.grid(optax.sgd, learning_rate=[0.1])},
    }  # fmt: skip
    return js.Sweep(**(base | changes))


def renamed(params, data, test, hyper):
    return {"train_loss": jnp.mean(data) * params["w"] ** 2, "b": params["w"], "c": params["v"]}


OTHERWISE = {
    "results under other names": {"observe": renamed},
    "frozen parameters": {"reduction": js.Reduction(frozen=("v",))},
    "only homogeneous optimizers": {"reduction": js.Reduction(homogeneous=True)},
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_how_a_task_is_trained_and_what_its_results_are_called_belong_to_it(tmp_path, name):
    js.run_sweep(of_one_weight(one_weight()), tmp_path)
    with pytest.raises(ValueError, match="belongs to another definition"):
        js.run_sweep(of_one_weight(one_weight(**OTHERWISE[name]), axes={"seed": 4}), tmp_path)


def test_an_extension_with_other_results_is_refused_before_anything_is_written(tmp_path):
    """Accepted as a change of code, it would leave stored runs without a variable."""

    def other(data, test, hyper):
        return {"k1": data.sum(), "k3": 2 * data.sum()}

    first = one_weight(describe=lambda data, test, hyper: {"k1": data.sum(), "k2": 2 * data.sum()})
    before = js.run_sweep(of_one_weight(first), tmp_path).load()
    for accept in (None, "another name"):
        with pytest.raises(ValueError, match=r"another definition|cannot change what is stored|cannot be extended"):
            js.run_sweep(of_one_weight(one_weight(describe=other), axes={"seed": 4}), tmp_path, accept=accept)
    xr.testing.assert_equal(js.open_results(tmp_path).load(), before)


def test_draws_are_those_of_the_code_as_it_is_now(tmp_path):
    """A task that is kept reads a number that has changed between two sweeps."""
    system, losses = functools.cache(one_weight()), []
    try:
        for FACTOR[0] in (1.0, 3.0):
            ds = js.run_sweep(of_one_weight(system), tmp_path / str(FACTOR[0]))
            losses.append(float(ds["train_loss"][0, 0, 0]))
    finally:
        FACTOR[0] = 1.0
    assert losses == [1.0, 3.0]


def test_classes_that_compute_derived_axes_belong_to_the_definition(tmp_path, monkeypatch):
    axes = {"slowness": [1.0, 2.0]}
    js.run_sweep(of_one_weight(one_weight(), axes={**axes, "seed": 2}), tmp_path)
    js.run_sweep(of_one_weight(one_weight(), axes={**axes, "seed": 2}), tmp_path)  # nothing has changed
    monkeypatch.setattr(Rates, "convert", staticmethod(lambda value: 5.0 / value))
    with pytest.raises(ValueError, match="belongs to another definition"):
        js.run_sweep(of_one_weight(one_weight(), axes={**axes, "seed": 4}), tmp_path)
