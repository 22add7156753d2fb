"""Axes and optimizers -> the table of runs: order, derived values, labels, and every bad input refused by name."""

import dataclasses
import itertools
import math

import numpy as np
import optax
import pytest

import jaxsign as js

PROBLEM = js.Problem(n=4, d=60, s=4, m_k=2, m_v=2, n_test=10, supports="disjoint")
SIGN = {"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])}


def sweep(**changes):
    base = {"system": js.two_layer, "problem": PROBLEM, "hyper": js.Hyper(sigma_p=2.0), "optimizers": SIGN, "steps": 20}
    return js.Sweep(**(base | changes))


def test_dims_are_the_axes_in_order_then_optimizer_then_seed():
    optimizers = {
        "sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3, 1e-4]),
        "gd": js.grid(optax.sgd, learning_rate=0.1),
    }
    both = sweep(
        optimizers=optimizers, axes={"seed": 5, "mu": [1.0, 2.0], ("d", "s"): [(60, 4), (90, 5)], "n": [2, 3, 4]}
    )
    assert both.dims == ("mu", "d", "n", "optimizer", "seed")
    assert both.shape == (2, 2, 3, 3, 5)
    assert both.size == 2 * 2 * 3 * 3 * 5
    assert both.combinations() == list(itertools.product(range(2), range(2), range(3)))
    assert [axis.static for axis in both.grid_axes] == [False, True, True]
    assert (sweep().dims, sweep().shape, sweep().seeds) == (("optimizer", "seed"), (1, 1), (0,))


@pytest.mark.parametrize(
    ("given", "seeds"),
    [(3, (0, 1, 2)), ([7, 2], (7, 2)), (np.array([4, 9]), (4, 9)), (range(2, 4), (2, 3)), (np.int64(2), (0, 1))],
)
def test_seeds_are_a_count_or_a_list(given, seeds):
    assert sweep(axes={"seed": given}).seeds == seeds
    assert all(type(seed) is int for seed in sweep(axes={"seed": given}).seeds)


def test_every_point_sets_its_own_problem_and_numbers():
    axes = {"snr": [0.1, 0.5], ("d", "s"): [(60, 4), (90, 9)], "mu": [1.0, 3.0]}
    points = sweep(axes=axes)
    for i, j, k in points.combinations():
        (d, s), snr, mu = axes["d", "s"][j], axes["snr"][i], axes["mu"][k]
        problem, hyper = points.problem_at((i, j, k)), points.hyper_at((i, j, k))
        assert problem == dataclasses.replace(PROBLEM, d=d, s=s)
        assert hyper.mu == mu
        # SNR = ||mu|| / (sigma_p sqrt s), with this run's own s and mu
        assert mu / (hyper.sigma_p * math.sqrt(s)) == pytest.approx(snr, rel=1e-14)
        assert points.task((i, j, k)) is js.two_layer(problem)


def test_the_engine_reaches_the_system_as_an_argument_or_an_axis():
    seen = []

    def system(problem, engine="none given"):
        seen.append(engine)
        return js.two_layer(problem)

    sweep(system=system)
    assert set(seen) == {"none given"}
    seen.clear()
    sweep(system=system, engine="mine", axes={"engine": ["a", "b"]})
    assert set(seen) == {"a", "b"}  # the axis wins over the argument
    seen.clear()
    sweep(system=system, engine="mine")
    assert set(seen) == {"mine"}


def test_optimizer_points_are_the_full_product_under_unique_readable_labels():
    optimizers = {
        "adam": js.grid(optax.adam, learning_rate=[1e-4, 3e-4], b2=[0.9, 0.99], eps=1e-15),
        "momentum": js.grid(optax.sgd, learning_rate=[0.1], momentum=[None, 0.9], nesterov=[False, True]),
        "mine": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        "power": js.grid(js.power_gd, learning_rate=[1 / 3, 0.3333333]),
    }
    points = sweep(optimizers=optimizers).optimizer_points
    labels = [label for label, _, _ in points]
    assert labels[:4] == [
        "adam(learning_rate=0.0001, b2=0.9)",
        "adam(learning_rate=0.0001, b2=0.99)",
        "adam(learning_rate=0.0003, b2=0.9)",
        "adam(learning_rate=0.0003, b2=0.99)",
    ]
    assert labels[4] == "momentum(momentum=None, nesterov=False)"
    assert labels[8] == "mine"
    assert len(set(labels)) == len(labels) == 11
    assert [family for _, family, _ in points] == ["adam"] * 4 + ["momentum"] * 4 + ["mine"] + ["power"] * 2
    assert points[1][2] == {"learning_rate": 1e-4, "b2": 0.99, "eps": 1e-15}
    assert points[8][2] == {}


BAD = {
    "unknown axis": ({"axes": {"sigma": [1.0]}}, ["axis", "'sigma'", "'sigma_p'", "'label_noise'"]),
    "unknown problem field": ({"axes": {"m_q": [3]}}, ["axis", "'m_q'", "'m_k'"]),
    "unknown member of a tuple": ({"axes": {("d", "z"): [(60, 4)]}}, ["axis", "'z'"]),
    "learning rate as an axis": (
        {"axes": {"learning_rate": [0.1, 0.2]}},
        ["'learning_rate'", "optimizer", "no axes", "js.grid(factory, learning_rate=[...])", "'sigma_p'"],
    ),
    "a factory's own keyword as an axis": (
        {"axes": {("mu", "p"): [(1.0, 0.5)]}, "optimizers": {"power": js.grid(js.power_gd, learning_rate=0.1)}},
        ["'p'", "optimizer", "js.grid(factory, p=[...])"],
    ),
    "decay of a bare transform as an axis": (
        {"axes": {"weight_decay": [0.1]}, "optimizers": {"mine": optax.adamw(0.1)}},
        ["'weight_decay'", "js.grid(factory, weight_decay=[...])"],
    ),
    "empty axis": ({"axes": {"snr": []}}, ["'snr'", "at least one value", "empty list"]),
    "empty zipped axis": ({"axes": {("d", "s"): []}}, ["('d', 's')", "at least one value"]),
    "empty seeds": ({"axes": {"seed": []}}, ["'seed'", "at least one value"]),
    "duplicate value": ({"axes": {"snr": [0.5, 1.0, 0.5]}}, ["'snr'", "duplicate", "0.5"]),
    "duplicate int and float": ({"axes": {"mu": [1, 2.0, 1.0]}}, ["'mu'", "duplicate", "1.0"]),
    "duplicate point": ({"axes": {("d", "s"): [(60, 4), (60, 4)]}}, ["('d', 's')", "duplicate", "(60, 4)"]),
    "duplicate seed": ({"axes": {"seed": [3, 1, 3]}}, ["'seed'", "duplicate", "3"]),
    "snr with sigma_p": ({"axes": {"snr": [1.0], "sigma_p": [1.0]}}, ["'snr'", "'sigma_p'", "got both"]),
    "zipped snr with sigma_p": ({"axes": {("snr", "sigma_p"): [(1.0, 1.0)]}}, ["'snr'", "'sigma_p'", "got both"]),
    "axis twice": ({"axes": {"s": [4], ("d", "s"): [(60, 4)]}}, ["'s'", "twice"]),
    "tuple too long": ({"axes": {("d", "s"): [(60, 4, 1)]}}, ["('d', 's')", "2 values", "(60, 4, 1)"]),
    "tuple too short": ({"axes": {("d", "s"): [(60,), (80,)]}}, ["('d', 's')", "2 values", "(60,)"]),
    "seed zipped": ({"axes": {("mu", "seed"): [(1.0, 1)]}}, ["seed", "zipped"]),
    "axis without a list": ({"axes": {"n": 4}}, ["'n'", "list", "4"]),
    "axis that is a string": ({"axes": {"engine": "dense"}}, ["'engine'", "list", "'dense'"]),
    "unknown engine": ({"axes": {"engine": ["dense", "denze"]}}, ["engine", "'denze'", "'dense'"]),
    "n not an int": ({"axes": {"n": [4, 3.0]}}, ["n must be an int >= 1", "n=3.0"]),
    "too many disjoint patches": ({"axes": {"n": [4, 20]}}, ["disjoint", "d-1 = 59", "=80"]),
    "s beyond d-1": ({"axes": {"s": [4, 60]}}, ["s must be an int in [1, d-1] = [1, 59]", "s=60"]),
    "negative sigma": ({"axes": {"sigma_p": [1.0, -2.0]}}, ["sigma_p", "[0, inf)", "-2.0"]),
    "NaN sigma": ({"axes": {"sigma_0": [math.nan]}}, ["sigma_0", "[0, inf)", "nan"]),
    "infinite alpha": ({"axes": {"alpha": [math.inf]}}, ["alpha", "finite", "inf"]),
    "mu of 0": ({"axes": {"mu": [1.0, 0.0]}}, ["mu", "(0, inf)", "0.0"]),
    "label noise above 1": ({"axes": {"label_noise": [0.0, 1.5]}}, ["label_noise", "[0, 1]", "1.5"]),
    "snr of 0": ({"axes": {"snr": [0.0]}}, ["snr", "(0, inf)", "0.0"]),
    "bad base number": ({"hyper": js.Hyper(sigma_p=-1.0)}, ["sigma_p", "[0, inf)", "-1.0"]),
    "no seeds": ({"axes": {"seed": 0}}, ["seed", "int >= 1", "0"]),
    "fractional seed": ({"axes": {"seed": [1.5]}}, ["seed", "int >= 0", "1.5"]),
    "negative seed": ({"axes": {"seed": [0, -1]}}, ["seed", "int >= 0", "-1"]),
    "seed beyond 32 bits": ({"axes": {"seed": [2**32]}}, ["seed", "[0, 2^32)", str(2**32)]),
    "no optimizers": ({"optimizers": {}}, ["optimizers", "at least one", "{}"]),
    "bare optimizer": ({"optimizers": js.sign_gd(0.1)}, ["optimizers", "dict", "got an Optax transform"]),
    "bare grid": ({"optimizers": js.grid(js.sign_gd, learning_rate=0.1)}, ["optimizers", "a js.grid of sign_gd"]),
    "list of optimizers": ({"optimizers": [optax.sgd(0.1)]}, ["optimizers", "dict", "[an Optax transform]"]),
    "not an optimizer": ({"optimizers": {"a": 3}}, ["optimizers['a']", "js.grid(factory, ...)", "3"]),
    "name of an optimizer": ({"optimizers": {"s": "adam"}}, ["optimizers['s']", "js.grid(factory, ...)", "'adam'"]),
    "factory with a required keyword": (
        {"optimizers": {"s": optax.adam}},
        ["optimizers['s']", "'learning_rate'", "js.grid(adam, learning_rate=[...])"],
    ),
    "nothing kept": ({"keep_trace": False}, ["keep_trace=False", "summary="]),
    "words for a summary": ({"summary": "mean"}, ["summary must be a function", "'mean'"]),
    "a class of numbers": ({"hyper": js.Hyper}, ["hyper must be an object, not a class", "hyper=Hyper(...)"]),
    "a class of sizes": ({"problem": js.Problem}, ["problem must be an object, not a class", "problem=Problem(...)"]),
    "no task": ({"system": lambda problem: problem}, ["system", "js.Task", "Problem"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name_value_and_legal_range(name):
    changes, words = BAD[name]
    with pytest.raises(ValueError) as caught:
        sweep(**changes)
    message = str(caught.value)
    assert "\n" not in message
    assert "<function" not in message
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("steps", [0, -3, 2.0, True, "10", None, math.nan])
def test_steps_must_be_a_positive_int(steps):
    with pytest.raises(ValueError, match=r"steps must be an int >= 1, got steps=") as caught:
        sweep(steps=steps)
    assert repr(steps) in str(caught.value)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"learning_rte": [0.1]}, ["sign_gd", "'learning_rte'", "'learning_rate'"]),
        ({}, ["sign_gd", "'learning_rate'"]),
        ({"learning_rate": []}, ["learning_rate", "at least one"]),
        ({"learning_rate": [0.1, 0.1]}, ["learning_rate", "duplicate", "0.1"]),
        ({"learning_rate": [0.1, math.nan]}, ["learning_rate", "finite", "nan"]),
    ],
)
def test_bad_optimizer_keywords_are_refused(keywords, words):
    with pytest.raises(ValueError) as caught:
        js.grid(js.sign_gd, **keywords)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("values", [[(60, 4), (80,)], [60, 80]])
def test_values_of_a_zipped_axis_that_are_not_pairs_are_refused(values):
    with pytest.raises(ValueError, match="needs 2 values"):
        sweep(axes={("d", "s"): values})


@pytest.mark.parametrize("changes", [{"hyper": None}, {"problem": None}, {"axes": None}])
def test_none_for_what_a_system_needs_is_refused(changes):
    with pytest.raises(ValueError):
        sweep(**changes)


def test_an_engine_axis_needs_a_system_with_engines():
    with pytest.raises(ValueError):
        sweep(system=lambda problem: js.two_layer(problem), axes={"engine": ["dense"]})
