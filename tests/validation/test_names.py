"""Every name and dtype that a user gives is kept everywhere, or refused in one line before anything runs."""

import functools
import html
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.cli.netcdf import export_netcdf
from jaxsign.store import checkpoints
from jaxsign.sweep import layout

LONG = "x" * 300
NFC, NFD = "caf\u00e9", "cafe\u0301"


def sample(key, hyper, shared):
    return jax.random.normal(key, (4,))


def init(key, data, hyper):
    return {"w": jnp.ones(3)}


def loss(params, batch, hyper):
    return jnp.sum(params["w"] ** 2) * hyper["slope"]


def observe(params, data, test, hyper):
    return {"train_loss": jnp.sum(params["w"] ** 2), "w": params["w"]}


def task(**changes):
    return js.Task(**{"sample": sample, "init": init, "loss": loss, "observe": observe, **changes})


def sweep(made=None, **changes):
    fields = {
        "system": lambda problem: made or task(),
        "problem": None,
        "hyper": {"slope": 0.5},
        "optimizers": {"gd": js.grid(optax.sgd, learning_rate=[0.1])},
        "axes": {"seed": 1},
        "steps": 4,
        "record": 2,
    }
    return js.Sweep(**{**fields, **changes})


def storable(made):
    """A system that `out=` can describe: named functions."""

    def system(problem):
        return made

    return system


def refusal(call):
    """The one line that a call is refused with."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value).split("\n----")[0]  # JAX adds a remark about its traceback
    assert "\n" not in text
    return text


# --- names that nothing can hold
HOSTILE = [
    "", " ", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a\0b", "a\nb", "a\tb", "__a", "zarr.json", "ZARR.JSON", " a",
    "a ", "\ud800", "\u202ea", LONG, "漢" * 80, "a'", "-a", "(a)", "\u0301a", "\u00a0",
]  # fmt: skip
NO_STRINGS = [1, 1.5, None, ("a", 1), b"a", frozenset()]


def named_observable(name):
    return lambda: js.run_sweep(sweep(task(observe=lambda *state: {name: jnp.ones(())})))


def named_summary(name):
    return lambda: js.run_sweep(sweep(summary=lambda trace: {name: trace["train_loss"][-1]}))


def named_constant(name):
    return lambda: js.run_sweep(sweep(task(describe=lambda data, test, hyper: {name: jnp.ones(())})))


def named_alarm(name):
    return lambda: sweep(task(watch={name: lambda *state: jnp.zeros((), bool)}))


def named_dimension(name):
    return lambda: sweep(task(dims={"w": (name,)}))


def named_dims(name):
    return lambda: sweep(task(dims={name: ("coordinate",)}))


def named_attrs(name):
    return lambda: sweep(task(attrs={name: {"units": "1"}}))


def named_attribute(name):
    return lambda: sweep(task(attrs={"w": {name: "1"}}))


def named_function(name):
    def function(params, data, test, hyper):
        return params["w"]

    function.__name__ = name
    return lambda: sweep(observables=[function])


def named_keyword(name):
    return lambda: js.grid(lambda **keywords: optax.sgd(0.1), **{name: [1.0]})


def named_field(name):
    return lambda: sweep(hyper={"slope": 0.5, name: 1.0})


KINDS = {
    "observable": named_observable, "summary": named_summary, "constant": named_constant, "alarm": named_alarm,
    "dimension": named_dimension, "dims": named_dims, "attrs": named_attrs, "attribute": named_attribute,
    "field": named_field,
}  # fmt: skip


@pytest.mark.parametrize("name", [*HOSTILE, *NO_STRINGS], ids=ascii)
def test_a_name_that_results_cannot_hold_is_refused_with_its_kind(name):
    kinds = dict(KINDS)
    if isinstance(name, str):
        kinds |= {"keyword": named_keyword, "observable ": named_function}
    for kind, named in kinds.items():
        line = refusal(named(name))
        assert kind.strip() in line, line
        assert repr(name) in line, line


def test_mixed_keys_that_cannot_be_sorted_are_refused_by_name():
    line = refusal(lambda: js.run_sweep(sweep(summary=lambda trace: {"a": trace["train_loss"][-1], 1: jnp.ones(())})))
    assert "summary 1 " in line


@pytest.mark.parametrize("name", ["val/loss", "..", ""])
def test_nothing_is_written_and_nothing_compiled_before_a_name_is_refused(name, tmp_path, monkeypatch):
    def summary(trace):
        return {name: trace["train_loss"][-1]}

    monkeypatch.setattr("jaxsign.sweep.programs.Compiler.compile", lambda *a: pytest.fail("compiled"))
    made = sweep(system=storable(task_of_module()), summary=summary)
    assert repr(name) in refusal(lambda: js.run_sweep(made, tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    assert repr(name) in refusal(lambda: js.run_sweep(made, tmp_path / "empty"))
    assert list((tmp_path / "empty").iterdir()) == []


@functools.cache
def task_of_module():
    return task()


# --- names that everything holds
KEPT = [
    "val loss", "loss.", "a.b", "c", "C0", "nul", "con", "_x", "\u03b7", "漢字", "🙂", "👩‍🔬", NFD, "double", "real",
    "loss(1, 2)", "x|<$x$>&%#{}~^", "y" * 200, "dim0", "chunk", "s11",
]  # fmt: skip


def many(params, data, test, hyper):
    return {name: i + jnp.sum(params["w"]) for i, name in enumerate(KEPT)}


def last_of_many(trace):
    return {f"last {name}"[:200]: trace[name][-1] for name in KEPT}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "out"
    made = sweep(
        system=storable(task(observe=many)), summary=last_of_many,
        optimizers={"$a_b^$ η": js.grid(optax.sgd, learning_rate=[0.1]), "_x(y=1)": optax.sgd(0.2)},
    )  # fmt: skip
    return js.run_sweep(made), js.run_sweep(made, path), path


def test_every_name_that_is_taken_is_in_memory_and_on_disk(kept):
    memory, disk, path = kept
    names = {*KEPT, *(f"last {name}"[:200] for name in KEPT)}
    assert names <= set(memory.data_vars)
    assert names <= set(disk.data_vars)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = xr.open_zarr(path / "results.zarr", consolidated=False)
    assert names <= set(plain.data_vars)
    for name in names:
        np.testing.assert_array_equal(memory[name], disk[name])
        np.testing.assert_array_equal(memory[name], plain[name])
    assert len({float(memory[name][0, 0, 0]) for name in KEPT}) == len(KEPT)  # no name has another one's numbers
    assert memory["family"].values.tolist() == disk["family"].values.tolist() == ["$a_b^$ η", "_x(y=1)"]


def test_an_export_holds_every_name(kept):
    memory, _, path = kept
    export_netcdf(path, path.parent / "x.nc")
    with xr.open_dataset(path.parent / "x.nc") as found:
        own = {v.attrs.get("name", name): v for name, v in found.data_vars.items()}
        assert set(map(str, memory.data_vars)) - {NFD} <= set(own)
        for name in memory.data_vars:
            np.testing.assert_array_equal(own[name], memory[name])
        assert "double_" in found
        assert found["double_"].attrs["name"] == "double"
        raw = (path.parent / "x.nc").read_bytes()
        assert "漢字".encode() in raw
        assert "η".encode() in raw


def test_a_report_holds_every_name(kept):
    page = html.unescape(js.report.render({"kept": kept[0]}))
    assert [name for name in KEPT if name not in page] == []
    assert "$a_b^$ η" in page
    assert "_x(y=1)" in page


def test_a_legend_shows_an_optimizers_name_letter_by_letter(kept, tmp_path):
    from matplotlib.figure import Figure

    ds = kept[0].rename({"double": "train_loss"})
    fig = Figure()
    axes = js.plot.loss(ds, fig.subplots())
    assert [t.get_text().strip() for t in axes.get_legend().get_texts()] == [r"\$a_b^\$ η", "_x(y=1)"]
    written = js.plot.save(fig, tmp_path, "loss")[-1].read_text(encoding="utf-8")
    assert "$a_b^$ η" in written
    assert "_x(y=1)" in written
    assert "\\$" not in written


def test_a_checkpoint_holds_every_name(tmp_path):
    rows = {"rows": {name: np.ones((2, 3), np.float32) for name in KEPT}}
    checkpoints.save(tmp_path / "block", 3, rows, {"a": 1})
    step, found = checkpoints.load(tmp_path / "block", rows, {"a": 1})
    assert step == 3
    assert set(found["rows"]) == set(KEPT)


# --- names that collide
RESERVED = ["step", "seed", "optimizer", "family", "status", "first_bad_step", "slope", "tilt", "learning_rate"]


def axes():
    return {"axes": {"tilt": [0.0, 1.0], "seed": 1}, "hyper": {"slope": 0.5, "tilt": 0.0}}


@pytest.mark.parametrize("name", [*RESERVED, "Step", "TILT", "Family"])
@pytest.mark.parametrize("kind", ["observable", "summary", "constant", "alarm"])
def test_a_result_with_the_name_of_something_else_is_refused(kind, name):
    changes = {
        "observable": {"observe": lambda *state: {name: jnp.ones(())}},
        "constant": {"describe": lambda data, test, hyper: {name: jnp.ones(())}},
        "alarm": {"watch": {name: lambda *state: jnp.zeros((), bool)}},
    }.get(kind, {})
    summary = (lambda trace: {name: jnp.ones(())}) if kind == "summary" else None
    line = refusal(lambda: js.run_sweep(sweep(task(**changes), summary=summary, **axes())))
    assert f"{kind} {name!r}" in line
    other = {"slope": "hyper field", "tilt": "axis", "learning_rate": "keyword of an optimizer", "family": "coordinate"}
    expected = other.get(
        name.lower(), "variable" if name[-2:] == "st" or "_" in name or name == "status" else "dimension"
    )
    assert expected in line, line


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [("a", "a", "already"), ("a", "A", "differ by case"), (NFC, NFD, "coding of accents"), ("ß", "SS", "case")],
)
def test_two_results_of_one_name_are_refused_wherever_they_come_from(first, second, word):
    def constant(data, test, hyper):
        return {second: jnp.ones(())}

    def observed(params, data, test, hyper):
        return {first: jnp.ones(())}

    two = task(observe=observed, describe=constant)
    both = task(observe=lambda *state: {first: jnp.ones(()), second: jnp.ones(())})
    made = {
        "constant": sweep(two), "summary": sweep(task(observe=observed), summary=lambda trace: {second: jnp.ones(())}),
        "alarm": sweep(task(observe=observed, watch={second: lambda *state: jnp.zeros((), bool)})),
    }  # fmt: skip
    if first != second:
        made["observable"] = sweep(both)
    for kind, one in made.items():
        line = refusal(lambda one=one: js.run_sweep(one))
        assert word in line
        assert kind in line
        assert repr(first) in line
        assert repr(second) in line
    line = refusal(lambda: js.train(jax.random.key(0), two, {"slope": 1.0}, optax.sgd(0.1), steps=2))
    assert word in line
    assert repr(second) in line


def test_a_summary_cannot_hide_a_constant_or_an_observable_in_a_single_run():
    def summary(trace):
        return {"train_loss": jnp.ones(())}

    line = refusal(
        lambda: js.train(jax.random.key(0), task(), {"slope": 1.0}, optax.sgd(0.1), steps=2, summary=summary)
    )
    assert "summary 'train_loss'" in line
    assert "observable" in line


@pytest.mark.parametrize("kind", ["function", "attribute"])
def test_functions_and_attributes_are_refused_when_the_sweep_is_built(kind):
    def slope(params, data, test, hyper):
        return params["w"]

    if kind == "function":
        assert "observable 'slope'" in refusal(lambda: sweep(observables=[slope]))
        assert "without a name" in refusal(lambda: sweep(observables=[functools.partial(slope, 1)]))
        line = refusal(lambda: sweep(observables=[lambda *state: 1.0, lambda *state: 2.0]))
        assert "functions of different names" in line
    for key in ("_FillValue", "scale_factor", "coordinates", "dtype"):
        assert repr(key) in refusal(lambda key=key: sweep(task(attrs={"w": {key: "1"}})))
    assert "'units'" in refusal(lambda: sweep(task(attrs={"w": {"units": ["m"]}})))
    assert "must be a dict" in refusal(lambda: sweep(task(attrs={"w": "m"})))


DIMS = {
    "a size of its own": ({"w": ("k",), "data": ("k",)}, ["dimension 'k'", "'w'", "'data'", "3", "4"]),
    "the runs'": ({"w": ("seed",)}, ["'w'", "'seed'", "which every result has besides"]),
    "an axis": ({"w": ("tilt",)}, ["dimension 'tilt'", "axis"]),
    "a number of the system": ({"w": ("slope",)}, ["dimension 'slope'", "hyper field"]),
    "a variable": ({"w": ("train_loss",)}, ["dimension 'train_loss'", "observable"]),
    "itself": ({"w": ("w",)}, ["dimension 'w'", "observable"]),
    "another case": ({"w": ("K",), "data": ("k",)}, ["'K'", "'k'", "case"]),
    "twice": ({"square": ("k", "k")}, ["'square'", "twice"]),
    "too many": ({"w": ("k", "l")}, ["'w'", "1 dimensions", "['k', 'l']"]),
    "a string": ({"w": "row"}, ["'w'", "tuple", "'row'"]),
}


def of_many_sizes(params, data, test, hyper):
    return {"train_loss": params["w"][0], "w": params["w"], "data": data, "square": jnp.outer(params["w"], params["w"])}


@pytest.mark.parametrize("case", DIMS)
def test_dimensions_that_one_dataset_cannot_hold_are_refused(case):
    dims, words = DIMS[case]
    made = task(observe=of_many_sizes, dims=dims)
    line = refusal(lambda: js.run_sweep(sweep(made, observables=["train_loss", "w", "data", "square"], **axes())))
    assert [word for word in words if word not in line] == [], line
    if case not in ("an axis", "a number of the system"):
        line = refusal(lambda: js.train(jax.random.key(0), made, {"slope": 1.0}, optax.sgd(0.1), steps=2).to_xarray())
        assert [word for word in words if word not in line] == [], line


# --- optimizers
@pytest.mark.parametrize("key", [1, ("a", 1), None, "", " ", "a\nb", "\ud800", b"a", 1.5, True], ids=ascii)
def test_an_optimizers_key_that_is_no_name_is_refused_when_the_sweep_is_built(key):
    line = refusal(lambda: sweep(optimizers={key: optax.sgd(0.1)}))
    assert "optimizers" in line
    assert repr(key) in line


def test_optimizers_that_look_the_same_are_refused():
    line = refusal(lambda: sweep(optimizers={NFC: optax.sgd(0.1), NFD: optax.sgd(0.2)}))
    assert "look the same" in line
    assert repr(NFC) in line
    grid = js.grid(optax.sgd, learning_rate=[0.1, 0.2])
    line = refusal(lambda: sweep(optimizers={"a": grid, "a(learning_rate=0.1)": optax.sgd(0.3)}))
    assert "'a(learning_rate=0.1)'" in line
    assert "optimizers['a']" in line
    both = sweep(optimizers={"a": grid, "a(b=1, c)": optax.sgd(0.3), LONG: optax.sgd(0.4), "A": optax.sgd(0.5)})
    assert [label for label, _, _ in both.optimizer_points][2:] == ["a(b=1, c)", LONG, "A"]


def test_keywords_that_end_up_under_one_name_are_refused():
    def any_of(**keywords):
        return optax.sgd(0.1)

    line = refusal(lambda: sweep(optimizers={"a": js.grid(any_of, slope=[1.0], optimizer_slope=[2.0])}))
    assert "keyword of an optimizer 'optimizer_slope'" in line
    assert "'LR'" in refusal(lambda: sweep(optimizers={"a": js.grid(any_of, lr=[1.0], LR=[2.0])}))
    ds = js.run_sweep(sweep(optimizers={"a": js.grid(any_of, status=[1.0], step=[2.0])}))
    assert float(ds["optimizer_status"][0]) == 1.0
    assert float(ds["optimizer_step"][0]) == 2.0


def test_a_word_among_values_that_no_file_can_hold_is_refused():
    assert "'a\\ud800'" in refusal(lambda: js.grid(lambda mode: optax.sgd(0.1), mode=["a\ud800"]))


@pytest.mark.parametrize("name", ["step", "seed", "status", "w", "w_dim0", "optimizer", "family_", "a/b", "W", ""])
def test_a_single_runs_coordinates_collide_with_nothing(name):
    run = js.train(jax.random.key(0), task(), {"slope": 1.0}, optax.sgd(0.1), steps=2)
    if name == "family_":
        assert float(run.to_xarray("a", **{name: 2})[name][0]) == 2.0
        for family in ("", 1, None, "a\nb"):
            assert repr(family) in refusal(lambda family=family: run.to_xarray(family))
        return
    line = refusal(lambda: run.to_xarray("a", **{name: 1.0}))
    assert "keyword of an optimizer" in line or "dimension" in line
    assert repr(name) in line


# --- dtypes
VALUES = {
    "bool": (True, np.bool_), "uint8": (200, np.uint8), "uint16": (60000, np.uint16), "uint32": (2**32 - 2, np.uint32),
    "int8": (-7, np.int8), "int16": (-300, np.int16), "int32": (2**31 - 1, np.int32), "float16": (0.5, np.float16),
    "bfloat16": (0.375, np.float32), "float8_e4m3fn": (0.25, np.float32), "float32": (0.1, np.float32),
}  # fmt: skip


def of_every_dtype(trace):
    zero = 0 * trace["train_loss"][-1]
    found = {name: (zero.astype(name) + jnp.asarray(value, name)).astype(name) for name, (value, _) in VALUES.items()}
    host = {"an int": 3, "a float": 0.5, "a flag": False, "numpy": np.float64(0.25), "array": np.arange(3)}
    return {**found, **host}


@pytest.fixture(scope="module")
def dtypes(tmp_path_factory):
    made = sweep(
        system=storable(task_of_module()), summary=of_every_dtype,
        optimizers={"a": optax.sgd(0.1), "b": optax.sgd(0.2)},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("dtypes") / "out"
    half = js.run_sweep(made, path, shard=(0, 2)).load()
    return js.run_sweep(made), half, js.run_sweep(made, path), path


@pytest.mark.parametrize("name", VALUES)
def test_a_summary_of_any_dtype_is_kept_and_says_what_has_not_run(dtypes, name):
    value, dtype = VALUES[name]
    memory, half, disk, _ = dtypes
    for ds in (memory, disk):
        assert ds[name].dtype == dtype
        assert (ds[name].values == np.asarray(value, dtype)).all()
    ran = half["status"].values >= 0
    assert ran.sum() == 1
    assert half[name].values[ran] == np.asarray(value, dtype)
    empty = half[name].values[~ran]
    if np.dtype(dtype).kind in "fb":
        assert np.isnan(empty).all()
    else:
        assert (empty == (np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else -1)).all()
    if name == "bfloat16":
        assert disk[name].attrs["computed_as"] == "bfloat16"


def test_numbers_of_the_host_are_a_summary_too(dtypes):
    for ds in dtypes[0], dtypes[2]:
        assert [ds[name].dtype.kind for name in ("an int", "a float", "a flag", "numpy", "array")] == list("ifbfi")
        assert ds["an int"].values.ravel().tolist() == [3, 3]
        assert not ds["a flag"].values.any()
        assert ds["array"].dims == ("optimizer", "seed", "array_dim0")


def test_dtypes_survive_the_export_and_a_single_run(dtypes):
    _, _, _, path = dtypes
    export_netcdf(path, path.parent / "x.nc")
    with xr.open_dataset(path.parent / "x.nc") as found:
        own = {v.attrs.get("name", name): v for name, v in found.data_vars.items()}
        for name, (value, dtype) in VALUES.items():
            assert (own[name].values == np.asarray(value, dtype)).all(), name
    run = js.train(jax.random.key(0), task(), {"slope": 1.0}, optax.sgd(0.1), steps=4, record=2, summary=of_every_dtype)
    ds = run.to_xarray()
    for name, (value, dtype) in VALUES.items():
        assert ds[name].dtype == dtype
        assert (ds[name].values == np.asarray(value, dtype)).all()


def test_bools_of_earlier_versions_stay_readable_and_extendable(tmp_path, monkeypatch):
    def summary(trace):
        return {"below": trace["train_loss"][-1] < 0.0}

    def earlier(dtype):
        dtype = np.dtype(dtype)
        return dtype, np.nan if dtype.kind == "f" else -1, {}

    made = {"system": storable(task_of_module()), "summary": summary}
    two = {"a": optax.sgd(0.1), "b": optax.sgd(0.2)}
    with monkeypatch.context() as patch:
        patch.setattr(layout, "stored_as", earlier)
        js.run_sweep(sweep(optimizers=two, **made), tmp_path / "out", shard=(0, 2))
    half = js.open_results(tmp_path / "out")["below"].values
    assert np.isnan(half[1]).all()
    assert not half[0].any()
    js.run_sweep(sweep(optimizers=two, **made), tmp_path / "out")
    whole = js.run_sweep(sweep(optimizers=two, **made | {"axes": {"seed": 3}}), tmp_path / "out")["below"]
    assert whole.dtype == bool
    assert whole.shape == (2, 3)
    assert not whole.values.any()


NO_NUMBERS = {
    "complex": (lambda x: x.astype("complex64"), "complex64"), "a key": (lambda x: jax.random.key(0), "key"),
    "a string": (lambda x: "high", "'high'"), "None": (lambda x: None, "None"), "a dict": (lambda x: {"a": x}, "dict"),
    "a list": (lambda x: [x, x], "list"), "empty": (lambda x: jnp.zeros((0, 2)), "(0, 2)"),
    "int4": (lambda x: x.astype("int4"), "int4"), "a large int": (lambda x: 2**40, str(2**40)),
    "a large NumPy int": (lambda x: np.int64(2**40), str(2**40)),
    "a large float": (lambda x: np.float64(1e300), "1e+300"),
    "text": (lambda x: np.array(["a"]), "<U1"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_a_value_that_is_no_number_is_refused_by_name(case):
    make, word = NO_NUMBERS[case]
    line = refusal(lambda: js.run_sweep(sweep(summary=lambda trace: {"x": make(trace["train_loss"][-1])})))
    assert "summary 'x'" in line
    assert word in line
    line = refusal(lambda: js.run_sweep(sweep(task(observe=lambda p, data, test, hyper: {"x": make(p["w"][0])}))))
    assert "observable 'x'" in line
    assert word in line
    line = refusal(lambda: js.run_sweep(sweep(task(describe=lambda data, test, hyper: {"x": make(data[0])}))))
    assert "constant 'x'" in line
    assert word in line
    single = functools.partial(js.train, jax.random.key(0), task(), {"slope": 1.0}, optax.sgd(0.1), steps=2)
    line = refusal(lambda: single(summary=lambda trace: {"x": make(trace["train_loss"][-1])}))
    assert "summary 'x'" in line
    assert word in line


@pytest.mark.parametrize("returned", [None, 1.0, [("a", 1.0)]])
def test_what_is_no_dict_is_refused(returned):
    assert "summary must be a dict" in refusal(lambda: js.run_sweep(sweep(summary=lambda trace: returned)))
    assert "observable must be a dict" in refusal(lambda: js.run_sweep(sweep(task(observe=lambda *state: returned))))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float16", "bfloat16"])
def test_observables_of_any_dtype_are_floats_with_and_without_a_test_set(dtype):
    def both(params, data, test, hyper):
        found = {"train_loss": jnp.sum(params["w"]), "plain": jnp.ones((), dtype)}
        return found | ({} if test is None else {"tested": jnp.ones((), dtype)})

    made = task(observe=both, sample_test=lambda key, hyper, shared: jnp.zeros(()))
    ds = js.run_sweep(sweep(made, test_every=4))
    assert ds["plain"].values.ravel().tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_array_equal(ds["tested"].values.ravel(), [1.0, np.nan, 1.0])


@pytest.mark.parametrize("kind", ["names", "dtypes"])
def test_groups_that_return_different_results_are_refused(kind):
    def summary(trace):
        few = trace["w"].shape[1] == 2
        if kind == "names":
            return {"few" if few else "many": jnp.ones(())}
        return {"count": jnp.ones((), jnp.int32 if few else jnp.float32)}

    line = refusal(
        lambda: js.run_sweep(
            sweep(
                system=lambda problem: task(init=lambda key, data, hyper: {"w": jnp.ones(problem.n)}),
                problem=js.Problem(n=2, d=50, s=2, m_k=1, m_v=1), axes={"n": [2, 3], "seed": 1}, summary=summary,
                observables=["train_loss", "w"],
            )
        )
    )  # fmt: skip
    assert ("'few'" in line or "'many'" in line) if kind == "names" else ("'count'" in line and "int32" in line)


def test_numbers_with_units_of_time_stay_numbers(tmp_path):
    made = task(attrs={"train_loss": {"units": "seconds"}, "w": {"units": "days since 2000-01-01"}})
    made = sweep(system=storable(made), observables=["train_loss", "w"])
    memory, disk = js.run_sweep(made), js.run_sweep(made, tmp_path / "out")
    for name in ("train_loss", "w"):
        assert disk[name].dtype == memory[name].dtype == np.float32
        np.testing.assert_array_equal(disk[name], memory[name])
        assert disk[name].attrs == memory[name].attrs


def test_an_export_refuses_a_name_of_earlier_versions_before_it_writes(tmp_path, monkeypatch):
    def summary(trace):
        return {"it's": trace["train_loss"][-1]}

    with monkeypatch.context() as patch:
        patch.setattr("jaxsign.validation.names.result_name", lambda kind, name: name)
        ds = js.run_sweep(sweep(system=storable(task_of_module()), summary=summary), tmp_path / "out")
    assert "it's" in ds
    line = refusal(lambda: export_netcdf(tmp_path / "out", tmp_path / "x.nc"))
    assert repr("it's") in line
    assert not list(tmp_path.glob("x.nc*"))
