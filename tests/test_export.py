"""The programs export for CPU, CUDA and TPU, and their text shows what each step costs: no f64, no scatter, full precision."""

import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsign as js
from jaxsign.training import Schedule, begin, make_train

PLATFORMS = ("cpu", "cuda", "tpu")
RUNS = 3


@pytest.fixture(scope="module", params=["exact", "none"])
def system(request, problem, hyper):
    """(task, jitted batch of `begin`, its abstract arguments, its abstract result)."""
    task = js.two_layer(problem, overlap=request.param)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), RUNS))
    numbers = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((RUNS,), jnp.float32), hyper)
    starting = jax.jit(jax.vmap(functools.partial(begin, task)))
    return task, starting, (keys, numbers), jax.eval_shape(starting, keys, numbers)


def text_of(program, *arguments):
    exported = jax.export.export(program, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return str(exported.mlir_module())


def test_begin_exports(system):
    _, starting, arguments, _ = system
    text = text_of(starting, *arguments)
    assert "stablehlo" in text
    assert not re.search(r"\bf64\b|xf64>", text)


@pytest.mark.parametrize("factory", [js.sign_gd, optax.adam], ids=["sign_gd", "adam"])
@pytest.mark.parametrize("compact", [True, False], ids=["compact", "full"])
def test_training_exports_without_f64_or_scatter_at_full_precision(system, factory, compact):
    task, _, (keys, numbers), starts = system
    one = make_train(task, factory, Schedule.build(7, 2, 4), compact=compact)
    program = jax.jit(jax.vmap(lambda key, start, hyper, rate: one(key, start, hyper, {"learning_rate": rate})))
    text = text_of(program, keys, starts, numbers, jax.ShapeDtypeStruct((RUNS,), jnp.float32))
    assert "stablehlo.while" in text
    assert not re.search(r"\bf64\b|xf64>", text)
    assert "scatter" not in text
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) > 3
    for line in products:
        assert re.search(r"precision = \[HIGHEST, HIGHEST\]", line), line
