"""Names, dimensions and coordinates: sweeps before they run, and one run as a sweep of one run."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.store.labels import base_coordinates, coordinates, own_dims

PROBLEM = js.Problem(n=4, d=90, s=4, m_k=2, m_v=2, n_test=10)


def sweep(**changes):
    base = {
        "system": js.two_layer, "problem": PROBLEM, "hyper": js.Hyper(sigma_p=2.0, mu=3.0), "steps": 20,
        "optimizers": {"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])},
    }  # fmt: skip
    return js.Sweep(**(base | changes))


def test_own_dims_are_named_or_numbered():
    named = {"s11": ("head", "sample"), "loss": ()}
    assert own_dims("s11", 2, named) == ("head", "sample")
    assert own_dims("s11", 3, named) == ("s11_dim0", "s11_dim1", "s11_dim2")  # the names do not fit
    assert own_dims("mine", 1, named) == ("mine_dim0",)
    assert own_dims("loss", 0, named) == own_dims("mine", 0, named) == ()


def test_axes_are_coordinates_and_zipped_members_lie_on_their_dimension():
    axes = {("d", "s"): [(90, 4), (120, 9)], "mu": [1.0, 2.0], "engine": ["dense"], "seed": [4, 2]}
    coords = coordinates(sweep(axes=axes, record=[0, 5, 20]))
    shown = {name: (dims, np.asarray(values).tolist()) for name, (dims, values, _) in coords.items()}
    assert shown == {
        "d": (("d",), [90, 120]),
        "s": (("d",), [4, 9]),
        "mu": (("mu",), [1.0, 2.0]),
        "engine": (("engine",), ["dense"]),
        "optimizer": (("optimizer",), ["sign_gd"]),
        "family": (("optimizer",), ["sign_gd"]),
        "learning_rate": (("optimizer",), [1e-3]),
        "seed": (("seed",), [4, 2]),
        "step": (("step",), [0, 5, 20]),
    }
    assert coords["step"][2]["units"] == "step"
    assert all(attrs["long_name"] for name, (_, _, attrs) in coords.items() if name in ("optimizer", "seed", "step"))


@pytest.mark.parametrize(
    ("axes", "dims"),
    [
        ({"snr": [0.1, 0.5]}, ("snr",)),
        ({"snr": [0.1, 0.5], "n": [2, 3]}, ("snr",)),
        ({"n": [2, 3], "s": [4, 9], "snr": [0.1, 0.5]}, ("s", "snr")),
        ({"mu": [1.0, 2.0], "snr": [0.1, 0.5], ("d", "s"): [(90, 4), (90, 9)]}, ("mu", "snr", "d")),
        ({("snr", "mu"): [(0.1, 1.0), (0.5, 2.0)]}, ("snr",)),
    ],
)
def test_a_derived_axis_brings_its_field_over_the_axes_it_depends_on(axes, dims):
    made = sweep(axes=axes)
    found, values, attrs = coordinates(made)["sigma_p"]
    assert found == dims
    assert attrs["units"] == "1"
    order = {axis.name: i for i, axis in enumerate(made.grid_axes)}
    for index in made.combinations():
        setting = {name: v for axis, i in zip(made.grid_axes, index) for name, v in zip(axis.members, axis.values[i])}
        wanted = setting.get("mu", 3.0) / (setting["snr"] * math.sqrt(setting.get("s", 4)))
        assert values[tuple(index[order[dim]] for dim in dims)] == pytest.approx(wanted, rel=1e-14)


def test_optimizer_keywords_are_columns_with_nan_where_there_is_none():
    optimizers = {
        "adam": js.grid(optax.adam, learning_rate=[0.1], b2=[0.9, 0.99], nesterov=[False, True]),
        "gd": js.grid(optax.sgd, learning_rate=[1, 0.5], momentum=[None, 0.9]),
        "mine": js.sign_gd(0.1),
    }
    coords = coordinates(sweep(optimizers=optimizers))
    columns = {name: np.asarray(values) for name, (dims, values, _) in coords.items() if dims == ("optimizer",)}
    nan = math.nan
    np.testing.assert_array_equal(columns["learning_rate"], [0.1] * 4 + [1.0, 1.0, 0.5, 0.5] + [nan])
    np.testing.assert_array_equal(columns["b2"], [0.9, 0.9, 0.99, 0.99] + [nan] * 5)
    np.testing.assert_array_equal(columns["momentum"], [nan] * 5 + [0.9, nan, 0.9, nan])
    assert columns["family"].tolist() == ["adam"] * 4 + ["gd"] * 4 + ["mine"]
    only = coordinates(sweep(optimizers={"adam": js.grid(optax.adam, learning_rate=[0.1], nesterov=[False, True])}))
    assert np.asarray(only["nesterov"][1]).tolist() == [False, True]


def test_a_keyword_that_is_an_axis_too_gets_a_name_of_its_own():
    def shifted(learning_rate, mu):
        return optax.sgd(learning_rate * mu)

    made = sweep(optimizers={"mine": js.grid(shifted, learning_rate=[0.1], mu=[5.0, 6.0])}, axes={"mu": [1.0, 2.0]})
    coords = coordinates(made)
    assert coords["mu"][1].tolist() == [1.0, 2.0]
    assert coords["optimizer_mu"][1].tolist() == [5.0, 6.0]


def test_numbers_that_no_axis_sets_are_scalars():
    zeros = dict.fromkeys(["alpha", "label_noise", "residual"], 0.0)
    assert base_coordinates(sweep()) == {"sigma_p": 2.0, "mu": 3.0, "sigma_0": 3e-3, **zeros}
    assert "sigma_p" not in base_coordinates(sweep(axes={"snr": [0.1]}))
    left = {"sigma_p", "sigma_0", "label_noise", "residual"}
    assert base_coordinates(sweep(axes={("mu", "alpha"): [(1.0, 0.1)]})).keys() == left
    bare = js.Sweep(system=line, problem=None, hyper=None, optimizers={"gd": optax.sgd(0.1)}, steps=1)
    assert base_coordinates(bare) == {}
    assert base_coordinates(dataclasses.replace(bare, hyper={"a": 1, "b": np.ones(2)})) == {"a": 1.0}


def line(problem):
    return TASK


TASK = js.Task(
    sample=lambda key, hyper, shared: jax.random.key_data(key)[0].astype(float) / 2.0**32 + jnp.arange(1.0, 4.0),
    sample_test=lambda key, hyper, shared: jnp.arange(4.0, 6.0),
    init=lambda key, data, hyper: {"w": jnp.zeros(())},
    loss=lambda params, data, hyper: jnp.mean((params["w"] * data - data) ** 2),
    observe=lambda params, data, test, hyper: {
        "w": params["w"],
        "gap": params["w"] * data - data,
        "outer": jnp.outer(data, data) * params["w"],
        **({} if test is None else {"test_loss": jnp.mean((params["w"] * test - test) ** 2)}),
    },
    describe=lambda data, test, hyper: {"size": jnp.sum(data), "points": data},
    watch={"passed_half": lambda params, data, hyper, gradient: params["w"] > 0.5},
    dims={"gap": ("sample",), "points": ("sample",)},
    attrs={"w": {"units": "1", "long_name": "slope"}},
)


def last(trace):
    return {"last": trace["w"][-1]}


def test_one_run_has_the_variables_and_dims_of_a_sweep_of_one_run():
    settings = {"steps": 12, "record": 4, "test_every": 8, "summary": last}
    names = ["w", "gap", "outer", "test_loss"]
    swept = js.run_sweep(
        js.Sweep(system=line, problem=None, hyper=None, observables=names, axes={"seed": [3]},
                 optimizers={"gd": js.grid(optax.sgd, learning_rate=0.02)}, **settings)
    )  # fmt: skip
    run = js.train(jax.random.key(3), TASK, None, optax.sgd(0.02), **settings)
    single = run.to_xarray()
    assert set(single.data_vars) == set(swept.data_vars)
    assert set(single.data_vars) == {*names, "size", "points", "passed_half", "last", "status", "first_bad_step"}
    for name in single.data_vars:
        assert single[name].dims == swept[name].dims
        assert single[name].attrs == swept[name].attrs or name not in TASK.attrs
        np.testing.assert_allclose(single[name], swept[name], rtol=1e-6)
    assert dict(single.sizes) == dict(swept.sizes)
    assert set(single.indexes) == set(swept.indexes)
    for dim in set(single.indexes) - {"optimizer"}:
        np.testing.assert_array_equal(single[dim], swept[dim])
    assert single["outer"].dims == ("optimizer", "seed", "step", "outer_dim0", "outer_dim1")
    assert single["gap"].dims == ("optimizer", "seed", "step", "sample")
    assert single["points"].dims == ("optimizer", "seed", "sample")
    assert single["last"].dims == single["status"].dims == ("optimizer", "seed")
    assert single["status"].dtype == np.int8
    assert int(single["seed"][0]) == 3
    assert single["w"].attrs == {"units": "1", "long_name": "slope"}
    # w moves to 1: the alarm rings at the first step that starts above 1/2
    x = np.asarray(run.constants["points"], float)
    w, step = 0.0, 0
    while w <= 0.5:
        w, step = w - 0.02 * 2 * np.mean(x * (w * x - x)), step + 1
    assert int(single["passed_half"].squeeze()) == int(swept["passed_half"].squeeze()) == step
    assert np.isfinite(single["test_loss"]).values.ravel().tolist() == [True, False, True, False]
