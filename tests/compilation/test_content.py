"""Keys of programs by their content: equal for equal transforms, different for different ones, none for users' code."""

import functools
import importlib
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.compilation import content, packaged
from jaxsign.optimizers.rules import FAMILIES

FACTOR = 2.0


def users(step):
    return FACTOR * step


@jax.jit
def jitted(step):
    return FACTOR * step


class Counter:
    def __call__(self, step):
        return step


@functools.wraps(optax.sgd)
def disguised(learning_rate):
    return optax.sgd(FACTOR * learning_rate)


class Number(float):
    """Subclasses of plain types may have code of their own."""


class Words(dict):
    pass


class Pair(typing.NamedTuple):
    a: int = 1

    def __call__(self, trace):
        return {"last": FACTOR}


class Bound(functools.partial):
    pass


EXECUTED = {}
exec("def executed(trace): return {}", EXECUTED)


@pytest.mark.parametrize("family", FAMILIES)
def test_transforms_of_equal_numbers_are_equal_and_of_other_numbers_different(family):
    factory, numbers = FAMILIES[family]
    assert content(factory(**numbers)) == content(factory(**numbers)) != None  # noqa: E711
    for name, value in numbers.items():
        assert content(factory(**numbers)) != content(factory(**{**numbers, name: 0.5 * value + 0.01}))


@pytest.mark.parametrize("build", [
    lambda: optax.chain(optax.trace(decay=0.9), optax.scale(-0.03)),
    lambda: optax.sgd(optax.exponential_decay(0.1, 10, 0.5)),
    lambda: functools.partial(optax.adam, eps=1e-15),
    lambda: (np.arange(3.0), jnp.arange(3.0), jax.random.key(0), {"a": [1, None, "b"]}),
    lambda: js.two_layer(js.Problem(n=2, d=9, s=2, m_k=2, m_v=2, n_test=2)),
])  # fmt: skip
def test_what_is_built_twice_has_one_key(build):
    assert content(build()) == content(build()) != None  # noqa: E711


@pytest.mark.parametrize(("a", "b"), [
    (1, 1.0), (True, 1), (0.0, -0.0), (np.float32(1), np.float64(1)), ([1], (1,)), (None, "None"),
    (np.zeros(2), np.zeros((1, 2))), (jnp.asarray(0.1), jnp.array(0.1, jnp.float32)),
    (np.zeros(2), jnp.zeros(2)), (jax.random.key(0), jax.random.key(1)),
    ({"a": 1}, {"a": 2}), (functools.partial(optax.sgd, 0.1), functools.partial(optax.sgd, 0.2)),
    (optax.sgd(0.1), optax.sgd(0.1, momentum=0.9)), (optax.sgd, optax.adam),
    (optax.chain(optax.scale(1.0)), optax.chain(optax.scale(1.0), optax.scale(1.0))),
])  # fmt: skip
def test_what_differs_has_other_keys(a, b):
    assert content(a) != content(b)
    assert content(a) is not None


def test_nan_equals_nan():
    assert content(float("nan")) == content(float("nan"))


@pytest.mark.parametrize("value", [
    users, lambda step: step, jitted, functools.partial(users, 1), Counter(), Counter, Counter().__call__,
    optax.sgd(users), optax.stateless(lambda updates, _: updates), optax.masked(optax.sgd(0.1), lambda p: p),
    {"schedule": users}, jax.custom_jvp(users), jax.vmap(users), object(), {1, 2},
    disguised, Number(1.0), Words(a=1), Pair(), Bound(optax.sgd, 0.1), EXECUTED["executed"], pytest.approx,
    np.ma.masked_array([1.0, 2.0], [True, False]),
])  # fmt: skip
def test_a_users_code_has_no_key(value):
    assert content(value) is None
    assert content(1, [value]) is None


def test_values_that_contain_themselves_and_traced_ones_have_no_key():
    cycle = []
    cycle.append(cycle)
    assert content(cycle) is None

    @jax.jit
    def inside(x):
        assert content(x) is None
        return x

    inside(1.0)


def test_a_users_file_that_is_called_like_one_of_python_s_is_not_python_s(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("SCALE = 1.0\n\ndef schedule(step):\n    return SCALE * step\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    users = importlib.import_module("colorsys")
    try:
        assert users.SCALE == 1.0
        assert content(optax.sgd(users.schedule)) is None
    finally:
        del sys.modules["colorsys"]
        packaged.cache_clear()
