"""Optimizers: one contract for every named family, signed powers, grids, and the probe of what a transform reads."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.optimizers.grid import as_grid, point_label
from jaxsign.optimizers.rules import FAMILIES

PARAMS = {"w": np.array([[0.5, -2.0], [1.0, 3.0]]), "b": np.array([0.1, -0.2, 0.3])}
RNG = np.random.default_rng(0)
GRADIENTS = [
    jax.tree.map(lambda p: RNG.normal(size=p.shape), PARAMS) for _ in range(5)
]  # an odd number: signs do not cancel
OURS = ("sign_gd", "signum", "power_gd", "smooth_sign_gd")


def follow(transform, dtype=np.float32):
    """Parameters after the gradients above, by the textbook loop."""
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS)
    state = transform.init(params)
    for gradient in GRADIENTS:
        updates, state = transform.update(jax.tree.map(lambda g: jnp.asarray(g, dtype), gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_contract(family):
    factory, keywords = FAMILIES[family]
    rest = {name: value for name, value in keywords.items() if name != "learning_rate"}
    # Optax's own transforms promote dtypes; ours run strictly, under the suite's setting.
    promotion = jax.numpy_dtype_promotion("strict" if family in OURS else "standard")
    rates, traces = jnp.array([1e-3, 1e-2, 1e-1]), []

    @jax.jit
    def mapped(rates, rest):
        traces.append(family)
        return jax.vmap(lambda rate: follow(factory(rate, **rest)))(rates)

    with promotion:
        many, again = mapped(rates, rest), mapped(2 * rates, rest)
        assert len(traces) == 1  # three learning rates, and three others: one trace
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((many, again)))
        plain = jax.jit(lambda: follow(factory(1e-2, **rest)))()
        for name, leaf in plain.items():
            np.testing.assert_allclose(many[name][1], leaf, rtol=1e-5)
            assert np.all(leaf != PARAMS[name].astype(np.float32))  # it moved
        # The same transform in a chain, under a schedule, and in another dtype.
        chained = jax.jit(lambda: follow(optax.chain(optax.identity(), factory(1e-2, **rest))))()
        scheduled = jax.jit(lambda: follow(factory(lambda count: jnp.where(count < 9, 1e-2, 0.0), **rest)))()
        stopped = jax.jit(lambda: follow(factory(lambda count: jnp.where(count < 9, 0.0, 1e-2), **rest)))()
        for name, leaf in plain.items():
            np.testing.assert_allclose(chained[name], leaf, rtol=1e-6)
            np.testing.assert_allclose(scheduled[name], leaf, rtol=1e-6)
            np.testing.assert_array_equal(stopped[name], PARAMS[name].astype(np.float32))
        half = jax.eval_shape(lambda: follow(factory(1e-2, **rest), jnp.bfloat16))
        assert {leaf.dtype for leaf in jax.tree.leaves((plain, many))} == {jnp.dtype(jnp.float32)}
        assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


def direction(transform, g):
    g = jnp.asarray(g, jnp.float32)
    return np.asarray(transform.update(g, transform.init(g))[0])


def test_sign_of_zero_and_nan():
    g = [2.0, 0.0, -1e-30, np.nan]
    for transform in (js.sign_gd(0.5), js.signum(0.5, beta=0.0), js.power_gd(0.5, p=0.0)):
        np.testing.assert_array_equal(direction(transform, g), [-0.5, 0.0, 0.5, np.nan])


def test_powers_lie_between_sign_and_gradient():
    g = np.array([3.0, -1e-3, 0.0, 4e-7, -25.0], np.float32)
    np.testing.assert_array_equal(direction(js.power_gd(0.1, p=0.0), g), direction(js.sign_gd(0.1), g))
    np.testing.assert_array_equal(direction(js.power_gd(0.1, p=1.0), g), direction(optax.sgd(0.1), g))
    np.testing.assert_allclose(direction(js.scale_by_power(0.5), g), np.sign(g) * np.sqrt(np.abs(g)), rtol=1e-6)
    powers = jax.vmap(lambda p: js.scale_by_power(p).update(jnp.asarray(g), optax.EmptyState())[0])(
        jnp.array([0.0, 2.0])
    )
    np.testing.assert_allclose(powers, [np.sign(g), np.sign(g) * g**2], rtol=1e-6)
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"p must be a finite number in \[0, inf\), got p="):
            js.scale_by_power(bad)


def test_smooth_sign_is_the_sign_below_its_temperature():
    g = np.array([3.0, -1e-3, 0.0, 4e-5], np.float32)
    sharp = direction(js.smooth_sign_gd(0.1, temperature=1e-7), g)
    np.testing.assert_array_equal(sharp, direction(js.sign_gd(0.1), g))
    np.testing.assert_allclose(direction(js.scale_by_smooth_sign(0.5), g), np.tanh(g / 0.5), rtol=1e-6)
    np.testing.assert_allclose(direction(js.scale_by_smooth_sign(1e4), g), g / 1e4, rtol=1e-6)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"temperature must be a finite number in \(0, inf\), got temperature="):
            js.scale_by_smooth_sign(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: js.sign_gd("a"), r"learning_rate must be a finite number in \[0, inf\), got learning_rate='a'"),
        (lambda: js.signum(-1e-3), r"learning_rate must be .* got learning_rate=-0.001"),
        (lambda: js.signum(1e-3, beta=1.0), r"beta must be a finite number in \[0, 1\), got beta=1.0"),
        (lambda: js.power_gd(float("nan")), "learning_rate must be .* got learning_rate=nan"),
        (lambda: js.smooth_sign_gd(None), "learning_rate must be .* got learning_rate=None"),
    ],
)
def test_numbers_outside_their_range_are_refused_when_an_optimizer_is_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_grids_are_products_in_order():
    grid = js.grid(optax.adam, learning_rate=[1e-4, 3e-4], b2=0.9, nesterov=[False, True])
    assert [tuple(point.values()) for point in grid.points] == [
        (1e-4, 0.9, False), (1e-4, 0.9, True), (3e-4, 0.9, False), (3e-4, 0.9, True),
    ]  # fmt: skip
    assert grid.keywords == ("learning_rate", "b2", "nesterov")
    assert grid.floats == ("learning_rate", "b2")
    assert grid.static(1) == {"nesterov": True}


def test_floats_are_traced_and_the_rest_is_static():
    def factory(rate, kind="a", order=1, mask=None, scale=1.0, mixed=1.0):
        return optax.sgd(rate)

    numbers = {"rate": np.array([0.1, 0.2], np.float32), "scale": jnp.array([2.0]), "mixed": [1, 0.5]}
    grid = js.grid(factory, kind=["a", "b"], order=[1, 2], mask=None, **numbers)
    assert grid.floats == ("rate", "scale", "mixed")
    assert grid.static(0) == {"kind": "a", "order": 1, "mask": None}
    assert {type(point["mixed"]) for point in grid.points} == {float}
    assert len(grid.points) == 16


def test_one_schedule_makes_its_whole_list_static():
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    grid = js.grid(optax.adam, learning_rate=[0.1, 0.2, schedule], b2=[0.9, 0.99])
    assert grid.floats == ("b2",)
    assert [grid.static(i) for i in (0, 2, 4)] == [{"learning_rate": rate} for rate in (0.1, 0.2, schedule)]


def test_bare_transforms_and_factories_are_grids_of_one():
    transform = optax.sgd(0.1)
    assert as_grid(transform).factory() is transform
    assert as_grid(transform).points == ({},)
    assert as_grid(lambda: transform).points == ({},)
    given = js.grid(js.sign_gd, learning_rate=0.1)
    assert as_grid(given) is given
    for wrong in (optax.adam, 3.0, None):
        with pytest.raises(ValueError, match=r"learning_rate|must be a function"):
            as_grid(wrong)
    with pytest.raises(ValueError, match="factory must be a function that returns an Optax transform, got an Optax tr"):
        js.grid(transform, learning_rate=0.1)


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"learning_rat": [0.1]}, ["keyword of adam", "'learning_rat'", "did you mean 'learning_rate'", "'b2'"]),
        ({"learning_rate": []}, ["adam(learning_rate)", "at least one value", "[]"]),
        ({"learning_rate": [0.1, 0.2, 0.1]}, ["adam(learning_rate)", "duplicate", "0.1"]),
        ({"learning_rate": [1, 1.0]}, ["adam(learning_rate)", "duplicate"]),
        ({"learning_rate": [0.1, float("nan")]}, ["adam(learning_rate)", "nan", "finite number"]),
        ({"learning_rate": float("inf")}, ["adam(learning_rate)", "inf", "finite number"]),
        ({"b2": [0.9]}, ["adam needs a value for 'learning_rate'", "learning_rate=[...]"]),
    ],
    ids=str,
)
def test_bad_grids_name_keyword_and_value(lists, words):
    with pytest.raises(ValueError) as caught:
        js.grid(optax.adam, **lists)
    for word in words:
        assert word in str(caught.value)


def branches_when_built(rate, scale=1.0):
    return optax.sgd(rate if rate > 0.1 else scale * rate)


def branches_in_its_update(rate, scale=1.0):
    def update(updates, state, params=None):
        return jax.tree.map(lambda g: float(scale) * g, updates), state

    return optax.chain(optax.GradientTransformation(lambda params: optax.EmptyState(), update), optax.scale(rate))


def asks_numpy(rate, scale=1.0):
    return optax.sgd(np.sqrt(rate) * scale)


@pytest.mark.parametrize(
    ("factory", "keyword"), [(branches_when_built, "rate"), (branches_in_its_update, "scale"), (asks_numpy, "rate")]
)
def test_a_number_that_a_factory_needs_in_python_is_a_constant_of_its_program(factory, keyword):
    grid = js.grid(factory, rate=[0.05, 0.2], scale=[0.5, 2.0])
    other = {"rate": "scale", "scale": "rate"}[keyword]
    assert (grid.needed, grid.floats, grid.programs) == ((keyword,), (other,), 2)
    assert [point[keyword] for point in grid.points] == {"rate": [0.05, 0.05, 0.2, 0.2], "scale": [0.5, 2.0] * 2}[
        keyword
    ]
    bound = js.grid(functools.partial(factory, **{keyword: 0.2}), **{other: [0.5, 2.0]})
    assert (bound.needed, bound.programs) == ((), 1)


def test_numbers_that_are_needed_only_together_are_all_found():
    def either(a, b, rate):
        return optax.sgd(rate) if a > 1 or b > 1 else optax.adam(rate)

    assert js.grid(either, a=[0.5, 2.0], b=[0.5, 2.0], rate=[0.1]).needed == ("a", "b")


def test_static_makes_constants_of_floats():
    grid = js.grid(optax.adam, learning_rate=js.static([0.1, 0.2]), b1=js.static(0.9), b2=[0.9, 0.99])
    assert (grid.floats, grid.needed, grid.programs) == (("b2",), (), 2)
    assert [word["learning_rate"] for word in grid.words] == ["0.1", "0.1", "0.2", "0.2"]
    assert repr(grid.static(0)) == "{'learning_rate': 0.1, 'b1': 0.9}"
    with pytest.raises(ValueError, match=r"adam.learning_rate. has a duplicate value"):
        js.grid(optax.adam, learning_rate=js.static([0.1, 0.1]))
    with pytest.raises(ValueError, match=r"must be left out of js.grid, got a random key"):
        js.grid(optax.noisy_sgd, learning_rate=0.1, key=js.static([jax.random.key(0)]))


def schedules_of(values):
    return [label for label, _, _ in sweep_of({"adam": js.grid(optax.adam, learning_rate=values)}).optimizer_points]


def sweep_of(optimizers):
    return js.Sweep(
        system=js.two_layer, problem=js.Problem(n=4, d=60, s=4, m_k=2, m_v=2), hyper=js.Hyper(sigma_p=2.0),
        optimizers=optimizers, steps=20,
    )  # fmt: skip


def test_schedules_have_readable_labels():
    cosine, linear = optax.cosine_decay_schedule, optax.linear_schedule

    def made(peak, steps=20):
        def schedule(count):
            return peak / (1 + count / steps)

        return schedule

    assert schedules_of([cosine(0.1, 20), linear(0.1, 0.0, 20), 0.1]) == [
        "adam(learning_rate=cosine(0.1))", "adam(learning_rate=polynomial(0.1))", "adam(learning_rate=0.1)"
    ]  # fmt: skip
    assert schedules_of([cosine(0.1, 20), cosine(0.1, 40)]) == [
        "adam(learning_rate=cosine(0.1, 20))", "adam(learning_rate=cosine(0.1, 40))"
    ]  # fmt: skip
    warm = [optax.warmup_cosine_decay_schedule(0.0, 0.1, steps, 20) for steps in (2, 4)]
    assert schedules_of(warm) == [
        f"adam(learning_rate=join(polynomial(0, 0.1, 1, {steps}), cosine(0.1, {20 - steps}), {steps}))"
        for steps in (2, 4)
    ]
    assert schedules_of([made(0.1), made(0.2)]) == ["adam(learning_rate=made(0.1))", "adam(learning_rate=made(0.2))"]
    with pytest.raises(ValueError, match=r"labels must be unique.*or name the values of a keyword by a dict"):
        schedules_of([lambda count: 0.1, lambda count: 0.2])


def test_a_dict_names_the_values_of_a_keyword():
    names = {"slow": lambda count: 0.1, "fast": lambda count: 0.2, "even": 0.3}
    assert schedules_of(names) == [f"adam(learning_rate={name})" for name in names]
    assert js.grid(optax.adam, learning_rate={"slow": 0.1, "fast": 0.2}).floats == ("learning_rate",)
    assert js.grid(optax.adam, learning_rate=js.static({"slow": 0.1, "fast": 0.2})).floats == ()
    for bad in ({}, {1: 0.1}, {" ": 0.1}):
        with pytest.raises(ValueError, match=r"adam.learning_rate."):
            js.grid(optax.adam, learning_rate=bad)


def test_a_factory_that_fails_for_another_reason_is_a_grid_and_shows_it_where_it_is_used():
    def broken(rate):
        raise RuntimeError(f"no transform for {rate}")

    def branches_on_gradients(rate):
        return optax.stateless(lambda updates, params: updates if updates["w"].sum() > 0 else params)

    for factory in (broken, branches_on_gradients):
        assert js.grid(factory, rate=[0.1]).floats == ("rate",)


@pytest.mark.parametrize(
    ("factory", "lists", "words"),
    [
        (
            js.power_gd,
            {"learning_rate": [0.1], "p": [1.0, -1.0]},
            r"power_gd\(p=-1\) is refused: p must be .* \[0, inf\)",
        ),
        (js.sign_gd, {"learning_rate": [0.1, -1.0]}, r"sign_gd\(learning_rate=-1\) is refused"),
        (js.signum, {"learning_rate": [0.1], "beta": [0.9, 1.5]}, r"signum\(beta=1.5\) is refused"),
        (js.smooth_sign_gd, {"learning_rate": [0.1], "temperature": [0.0]}, r"temperature must be .* \(0, inf\), got"),
        (lambda rate: None, {"rate": [0.1]}, "must be an Optax transform, with init and update, got None"),
    ],
)
def test_a_number_that_is_traced_is_checked_like_one_that_is_not(factory, lists, words):
    with pytest.raises(ValueError, match=words):
        js.grid(factory, **lists)


def test_a_grid_starts_no_backend():
    # A sweeps/NAME.py builds its grids when it is loaded; --devices and --x64 are set after that.
    program = (
        "import jaxsign as js, jax, optax; from jaxsign.cli.console import configure\n"
        "js.grid(optax.adam, learning_rate=[1e-3, 1e-2]), js.grid(js.power_gd, learning_rate=0.1, p=[0.0, 0.5])\n"
        "configure(devices=3); print(jax.device_count())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"


def test_labels_show_what_varies():
    point = js.grid(optax.adam, learning_rate=1e-4, b2=1 / 3, nesterov=True).words[0]
    assert point_label("adam", point, ["learning_rate", "b2", "nesterov"]) == (
        "adam(learning_rate=0.0001, b2=0.3333333333333333, nesterov=True)"
    )
    assert point_label("adam", point, []) == "adam"
