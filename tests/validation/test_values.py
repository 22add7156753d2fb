"""Numbers of any kind become plain ones; those that the run's floats would turn into others are refused."""

import functools
import itertools
import time
from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.optimizers.words import value_word
from jaxsign.store.labels import coordinates
from jaxsign.validation.values import known, representable

PROBLEM = js.Problem(n=4, d=60, s=4, m_k=2, m_v=2, n_test=10)
SIGN = {"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])}


def sweep(**changes):
    base = {"system": js.two_layer, "problem": PROBLEM, "hyper": js.Hyper(sigma_p=2.0), "optimizers": SIGN, "steps": 20}
    return js.Sweep(**(base | changes))


def refusal(call):
    """The one line that a call is refused with."""
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- numbers of any kind
SNRS = {
    "list": [0.25, 1.0], "tuple": (0.25, 1), "NumPy": np.array([0.25, 1.0]), "float16": np.array([0.25, 1], np.float16),
    "JAX": jnp.array([0.25, 1.0]), "0-d NumPy": [np.array(0.25), np.array(1)],
    "0-d JAX": [jnp.array(0.25), jnp.array(1)],
    "scalars": [np.float32(0.25), np.int64(1)], "bfloat16": jnp.array([0.25, 1.0], jnp.bfloat16),
    "fractions": [Fraction(1, 4), Fraction(1)], "decimals": [Decimal("0.25"), Decimal(1)],
    "longdouble": [np.longdouble(0.25), np.longdouble(1)], "mixed": [Fraction(1, 4), np.uint8(1)],
    "series": pd.Series([0.25, 1.0]), "index": pd.Index([0.25, 1.0]), "xarray": xr.DataArray([0.25, 1.0], dims="x"),
    "generator": (x for x in [0.25, 1.0]), "iterator": iter([0.25, 1.0]), "keys": {0.25: 1, 1.0: 2}.keys(),
    "map": map(float, ["0.25", "1"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", SNRS)
def test_values_of_an_axis_become_plain_numbers(kind):
    made = sweep(axes={"snr": SNRS[kind], "seed": 1})
    assert [point[0] for point in made.grid_axes[0].values] == [0.25, 1.0]
    assert all(type(point[0]) in (int, float) for point in made.grid_axes[0].values)
    _, column, _ = coordinates(made)["snr"]
    assert column.dtype == np.float64
    assert column.tolist() == [0.25, 1.0]
    assert [made.hyper_at((i,)).sigma_p for i in range(2)] == [2.0, 0.5]
    assert js.Sweep(**{**vars_of(made), "steps": 30}).shape == made.shape  # a copy goes through the values again


def vars_of(made):
    return {name: getattr(made, name) for name in ("system", "problem", "hyper", "optimizers", "axes", "steps")}


@pytest.mark.parametrize(
    "given",
    [[2, 3], np.array([2, 3]), jnp.array([2, 3]), [np.uint8(2), np.array(3)], range(2, 4), iter([2, 3])],
    ids=["list", "NumPy", "JAX", "scalars", "range", "iterator"],
)
def test_values_of_a_static_axis_become_plain_integers(given):
    made = sweep(axes={"n": given, "seed": 1})
    assert [made.problem_at((i,)).n for i in range(2)] == [2, 3]
    assert coordinates(made)["n"][1].dtype == np.int64


@pytest.mark.parametrize("given", [np.array([[60, 4], [90, 9]]), jnp.array([[60, 4], [90, 9]]), zip([60, 90], [4, 9])])
def test_zipped_values_come_from_arrays_too(given):
    made = sweep(axes={("d", "s"): given, "seed": 1})
    assert made.grid_axes[0].values == ((60, 4), (90, 9))


NO_VALUES = {
    "complex": ({"mu": [1 + 2j]}, ["'mu'", "(1+2j)"]), "words": ({"snr": ["0.1"]}, ["'snr'", "'0.1'"]),
    "None": ({"mu": [None]}, ["'mu'", "None"]), "a bool": ({"mu": [True]}, ["'mu'", "True"]),
    "a NumPy bool": ({"mu": [np.bool_(True)]}, ["'mu'", "True"]), "inf": ({"mu": [np.inf]}, ["mu", "inf"]),
    "NaN": ({"mu": [jnp.nan]}, ["mu", "nan"]), "a NaN Decimal": ({"mu": [Decimal("nan")]}, ["mu", "nan"]),
    "two dimensions": ({"mu": np.ones((2, 2))}, ["'mu'", "array([1., 1.])"]),
    "a list": ({"mu": [[1.0]]}, ["'mu'", "[1.0]"]),
    "a set": ({"mu": {1.0, 2.0}}, ["'mu'", "set", "order"]), "a dict": ({"mu": {1.0: 2.0}}, ["'mu'", "{1.0: 2.0}"]),
    "bytes": ({"mu": b"12"}, ["'mu'", "b'12'"]), "a key": ({"mu": [jax.random.key(0)]}, ["'mu'"]),
    "a large int": ({"mu": [10**400]}, ["'mu'", "1000"]), "a large fraction": ({"mu": [Fraction(10**400)]}, ["'mu'"]),
    "a large static int": ({"n": [2**64]}, ["'n'", "64 bits"]), "float n": ({"n": [20.0]}, ["n=20.0"]),
    "a fraction n": ({"n": [Fraction(20)]}, ["n=20.0"]), "a bool n": ({"n": [True]}, ["n=True"]),
    "a word n": ({"n": ["4"]}, ["n='4'"]), "equal values": ({"mu": [1, 2, Fraction(1)]}, ["'mu'", "duplicate", "1.0"]),
    "no name": ({(): [()]}, ["axis ()"]), "a number as a name": ({1: [1.0]}, ["axis", "1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_VALUES)
def test_values_that_are_no_numbers_are_refused(case):
    axes, words = NO_VALUES[case]
    line = refusal(lambda: sweep(axes={**axes, "seed": 1}))
    assert [word for word in words if word not in line] == [], line


def test_a_systems_own_numbers_may_be_of_any_kind():
    made = sweep(
        hyper=js.Hyper(sigma_p=Fraction(1, 2), mu=np.float32(0.5), sigma_0=jnp.array(0.25), alpha=Decimal("0.5"))
    )
    assert made.hyper == js.Hyper(sigma_p=0.5, mu=0.5, sigma_0=0.25, alpha=0.5)
    task = js.two_layer(PROBLEM)
    run = js.train(
        jax.random.key(0), task, js.Hyper(sigma_p=Fraction(1, 2), sigma_0=Decimal("0.25")), js.sign_gd(1e-3), steps=2
    )
    same = js.train(jax.random.key(0), task, js.Hyper(sigma_p=0.5, sigma_0=0.25), js.sign_gd(1e-3), steps=2)
    np.testing.assert_array_equal(run.trace["train_loss"], same.trace["train_loss"])
    for wrong in ("2.0", 2j, None, b"2"):
        assert "slope" in refusal(lambda wrong=wrong: sweep(hyper={"slope": wrong}, system=lambda problem: task))
    assert "sigma_p" in refusal(lambda: sweep(hyper=js.Hyper(sigma_p="2.0")))
    assert "sigma_p" in refusal(lambda: sweep(hyper=js.Hyper(sigma_p=np.bool_(True))))


def test_a_problems_integers_may_be_of_any_kind_but_stay_integers():
    made = js.Problem(n=np.int64(4), d=jnp.array(60), s=np.array(4), m_k=2, m_v=2)
    assert (made.n, made.d, made.s) == (4, 60, 4)
    assert {type(made.n), type(made.d), type(made.s)} == {int}
    for wrong in (20.0, np.float64(20), Fraction(20), "20", True, np.bool_(True), np.array([20])):
        assert "n must be an int" in refusal(lambda wrong=wrong: js.Problem(n=wrong, d=60, s=4, m_k=2, m_v=2))


GRIDS = {
    "fractions": [Fraction(1, 4), Fraction(1, 2)], "decimals": [Decimal("0.25"), Decimal("0.5")],
    "0-d": [np.array(0.25), jnp.array(0.5)], "JAX": jnp.array([0.25, 0.5]), "series": pd.Series([0.25, 0.5]),
    "xarray": xr.DataArray([0.25, 0.5], dims="x"), "generator": (x for x in (0.25, 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("kind", GRIDS)
def test_values_of_a_grid_become_plain_floats(kind):
    made = js.grid(optax.sgd, learning_rate=GRIDS[kind])
    assert made.points == ({"learning_rate": 0.25}, {"learning_rate": 0.5})
    assert made.floats == ("learning_rate",)
    assert all(type(point["learning_rate"]) is float for point in made.points)


@pytest.mark.parametrize(
    "given", [np.array(0.25), jnp.array(0.25), np.float32(0.25), Fraction(1, 4), xr.DataArray(0.25)]
)
def test_one_value_of_a_grid_needs_no_list(given):
    assert js.grid(optax.sgd, learning_rate=given).points == ({"learning_rate": 0.25},)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("0.1", "'0.1'"), (["0.1"], "'0.1'"), (b"1", "b'1'"), ([1j], "1j"), ([True], "True"), (np.bool_(True), "True"),
        (np.ones((2, 2)), "array"), (np.ones((2, 1)), "array"), ({0.1: 1}, "{0.1: 1}"), ({0.1, 0.2}, "0.1"),
        ([2**64], "64 bits"), ([10**400, 0.5], "64 bits"), ([Fraction(10**400)], "range of floats"),
    ],
    ids=ascii,
)  # fmt: skip
def test_values_of_a_grid_that_are_no_numbers_are_refused(given, word):
    line = refusal(lambda: js.grid(optax.sgd, learning_rate=given))
    assert "sgd(learning_rate)" in line
    assert word in line


def test_a_number_of_32_bits_has_a_short_label_and_its_own_value():
    made = js.grid(optax.sgd, learning_rate=np.array([0.1, 0.3], np.float32))
    assert made.points[0]["learning_rate"] == float(np.float32(0.1))
    labels = [label for label, _, _ in sweep(optimizers={"gd": made}).optimizer_points]
    assert labels == ["gd(learning_rate=0.1)", "gd(learning_rate=0.3)"]
    assert value_word(1 / 3) == "0.3333333333333333"
    assert value_word(float(np.float32(1 / 3))) == "0.3333333432674408"


# --- seeds
@pytest.mark.parametrize(
    ("given", "seeds"),
    [
        (np.array(3), (0, 1, 2)), (jnp.array(3), (0, 1, 2)), (jnp.array([4, 2]), (4, 2)), (pd.Series([4, 2]), (4, 2)),
        (xr.DataArray([4, 2], dims="x"), (4, 2)), (iter([4, 2]), (4, 2)), ([np.uint8(4), jnp.array(2)], (4, 2)),
        ([2**32 - 1], (2**32 - 1,)),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_seeds_of_any_kind(given, seeds):
    made = sweep(axes={"seed": given})
    assert made.seeds == seeds
    assert all(type(seed) is int for seed in made.seeds)


@pytest.mark.parametrize(
    "given",
    [True, [True], [np.bool_(True)], "4", ["4"], [1.0], 4.0, {1, 2}, {1: 2}, [[1, 2]], np.ones((2, 2), int), [2**32],
     [-1], [2**70], Fraction(3), [[1], [1, 2]], None, b"4"],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_seed_is_refused(given):
    assert "seed must be an int" in refusal(lambda: sweep(axes={"seed": given}))


def test_the_time_for_a_list_of_seeds_grows_like_its_length():
    started = time.process_time()
    made = sweep(axes={"seed": list(range(50_000))})
    assert made.size == 50_000
    assert time.process_time() - started < 1.5  # comparing every pair takes 10 s
    assert "duplicate value, got 7 twice" in refusal(lambda: sweep(axes={"seed": [*range(1000), 7]}))


# --- what 32-bit floats turn into another number
CHANGED = {
    "eps": (1e-50, "becomes 0"), "eps_root": (1e-40, "becomes 0"), "b2": (1 - 1e-9, "becomes 1"),
    "b1": (1 - 2**-26, "becomes 1"), "learning_rate": (1e39, "becomes inf"),
}  # fmt: skip
ALL_32 = pytest.mark.skipif(jax.dtypes.canonicalize_dtype(float) != np.float32, reason="32-bit floats")


@ALL_32
@pytest.mark.parametrize("keyword", CHANGED)
def test_a_keyword_that_becomes_another_number_is_refused_unless_floats_are_wide(keyword):
    value, words = CHANGED[keyword]
    for given in ([value], [0.5, value], value, [value, None] if keyword != "learning_rate" else [value]):
        made = js.grid(optax.adam, **{"learning_rate": [1e-3], keyword: given})
        line = refusal(lambda made=made: sweep(optimizers={"adam": made}))
        assert "optimizers['adam']" in line
        assert f"{keyword}={value!r} {words} in float32" in line
        assert "--x64" in line
    bound = functools.partial(optax.adam, **{"learning_rate": 1e-3, keyword: value})
    assert f"{keyword}={value!r} {words}" in refusal(lambda: sweep(optimizers={"adam": bound}))
    with jax.enable_x64(True):
        sweep(optimizers={"adam": js.grid(optax.adam, **{"learning_rate": [1e-3], keyword: [value]})})


@ALL_32
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("sigma_0", 1e-50, "becomes 0"), ("sigma_0", 1e-40, "becomes 0"), ("mu", 1e39, "becomes inf"),
        ("alpha", -1e39, "becomes -inf"), ("label_noise", 1 - 1e-9, "becomes 1"), ("residual", -1 + 1e-9, "becomes -1"),
        ("snr", 1e-50, "becomes 0"), ("snr", Fraction(1, 10**60), "becomes 0"), ("mu", 2 * 10**38 * 10, "becomes inf"),
    ],
    ids=ascii,
)  # fmt: skip
def test_a_number_of_the_system_that_becomes_another_one_is_refused_unless_floats_are_wide(field, value, words):
    line = refusal(lambda: sweep(axes={field: [value, 0.5], "seed": 1}))
    assert f"axis {field!r}" in line
    assert words in line
    assert "float32" in line
    if field != "snr":
        own = {"sigma_p": 2.0, field: value}
        line = refusal(lambda: sweep(hyper=js.Hyper(**own)))
        assert f"{field}=" in line
        assert words in line
        task = js.two_layer(PROBLEM)
        line = refusal(lambda: js.train(jax.random.key(0), task, js.Hyper(**own), js.sign_gd(1e-3), steps=2))
        assert f"{field}=" in line
        assert words in line
        with jax.enable_x64(True):
            sweep(hyper=js.Hyper(**own))
    with jax.enable_x64(True):
        sweep(axes={field: [value, 0.5], "seed": 1})


@ALL_32
def test_a_derived_number_is_checked_where_its_axis_is_not():
    line = refusal(lambda: sweep(hyper=js.Hyper(sigma_p=1.0, mu=1e-20), axes={"snr": [1e20], "seed": 1}))
    assert "sigma_p" in line
    assert "snr=1e+20" in line
    assert "becomes 0 in float32" in line


@ALL_32
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizers": {"a": js.grid(optax.sgd, learning_rate=[0.1, 0.1 + 1e-10])}},
        {"optimizers": {"a": js.grid(optax.adam, learning_rate=[0.1], b2=[0.9, 0.9 + 1e-12])}},
        {"axes": {"mu": [0.1, 0.1 + 1e-10], "seed": 1}},
        {"axes": {"mu": [2**24, 2**24 + 1], "seed": 1}},
        {"axes": {"snr": [0.3, 0.30000000000000004], "seed": 1}},
        {"axes": {("mu", "alpha"): [(0.1, 1.0), (0.1 + 1e-10, 1)], "seed": 1}},
    ],
)
def test_values_that_become_one_number_are_refused_unless_floats_are_wide(changes):
    line = refusal(lambda: sweep(**changes))
    assert "one number in float32" in line
    assert "0.1" in line or "0.9" in line or "16777217" in line or "0.3" in line
    with jax.enable_x64(True):
        sweep(**changes)


def test_numbers_that_are_only_rounded_are_taken():
    grid = js.grid(optax.adam, learning_rate=[0.1, 1 / 3], b2=[0.999, 0.9999999], eps=[1e-18, 0.0], eps_root=1e-37)
    axes = {("mu", "alpha"): [(0.1, 1.0), (0.1, 2.0)], "sigma_0": [0.0, 1.0], "label_noise": [0.0, 1.0], "seed": 1}
    sweep(optimizers={"adam": grid}, axes=axes)
    for one in (1 - 2**-53, 1 + 2**-52, 0.1 * 3 / 0.3):  # what 64-bit arithmetic makes of 1
        representable("sigma_p", one, np.float32)
    snrs = np.logspace(-3, 3, 25)
    sweep(axes={"snr": snrs, "mu": [1.0, 3.0], "seed": 1})


@ALL_32
def test_floats_that_were_narrowed_after_a_sweep_was_built_are_checked_when_it_runs(tmp_path):
    with jax.enable_x64(True):
        made = sweep(optimizers={"adam": js.grid(optax.adam, learning_rate=[1e-3], eps=[1e-50])})
    for out in (None, tmp_path / "out"):
        assert "eps=1e-50 becomes 0 in float32" in refusal(lambda out=out: js.run_sweep(made, out))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [*itertools.chain(*([v, -v] for v in (1e-320, 1e-310)))])
def test_subnormal_64_bit_numbers_become_0(value):
    assert "becomes 0 in float64: choose another" in refusal(lambda: representable("eps", value, np.float64))
    representable("eps", 1e-150, np.float64)


@pytest.mark.parametrize("steps", [2**31, 2**40])
def test_steps_beyond_the_counters_of_the_loop_are_refused(steps):
    assert f"steps={steps}" in refusal(lambda: sweep(steps=steps, record=[0, 10], test_every=[0]))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning_rat", "learning_rate"), ("Learning_Rate", "learning_rate"), ("learn", "learning_rate"),
        ("sede", "seed"), ("momentun", "momentum"), ("sigmap", "sigma_p"),
        ("depth", ""), ("batch", ""), ("width", ""), ("epochs", ""), ("rate", ""), ("z", ""), ("test", ""),
    ],
)  # fmt: skip
def test_a_name_is_proposed_only_where_it_was_probably_meant(typed, meant):
    line = refusal(lambda: known("axis", typed, ["learning_rate", "seed", "momentum", "sigma_p", "mu", "step", "d"]))
    assert (f"did you mean {meant!r}?" in line) if meant else ("did you mean" not in line), line
