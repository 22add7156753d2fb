"""The programs export for CPU, CUDA and TPU, and their text shows no f64, no scatter in a step and full precision."""

import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsign as js
from jaxsign.schedule import Schedule
from jaxsign.start import begin
from jaxsign.training import make_train

PLATFORMS = ("cpu", "cuda", "tpu")
RUNS = 3


@pytest.fixture(scope="module", params=[("dense", "exact"), ("dense", "none"), ("support", "none")], ids="-".join)
def system(request, problem, hyper):
    """(task, overlap, jitted batch of `begin`, its abstract arguments, its abstract result)."""
    engine, overlap = request.param
    task = js.two_layer(problem, engine=engine, overlap=overlap)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), RUNS))
    numbers = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((RUNS,), jnp.float32), hyper)
    starting = jax.jit(jax.vmap(functools.partial(begin, task)))
    return task, overlap, starting, (keys, numbers), jax.eval_shape(starting, keys, numbers)


def text_of(program, *arguments):
    exported = jax.export.export(program, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return str(exported.mlir_module())


def test_begin_exports(system):
    _, _, starting, arguments, _ = system
    text = text_of(starting, *arguments)
    assert "stablehlo" in text
    assert not re.search(r"\bf64\b|xf64>", text)


def inner(jaxpr):
    """The jaxprs inside one, with the names of the primitives that hold them."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            found = getattr(value, "jaxpr", value)
            if hasattr(found, "eqns"):
                yield equation.primitive.name, found


def loops(jaxpr, depth=0):
    """Every jaxpr inside, with the number of loops around it."""
    yield depth, jaxpr
    for name, found in inner(jaxpr):
        yield from loops(found, depth + (name in ("scan", "while")))


@pytest.mark.parametrize(("factory", "compact"), [(js.sign_gd, True), (optax.adam, False)], ids=["compact", "full"])
def test_training_exports_without_f64_or_scatter_at_full_precision(system, factory, compact):
    task, overlap, _, (keys, numbers), starts = system
    one = make_train(task, factory, Schedule.build(7, 2, 4), compact=compact)
    program = jax.jit(jax.vmap(lambda key, start, hyper, rate: one(key, start, hyper, {"learning_rate": rate})))
    arguments = keys, starts, numbers, jax.ShapeDtypeStruct((RUNS,), jnp.float32)
    text = text_of(program, *arguments)
    assert "stablehlo.while" in text
    assert not re.search(r"\bf64\b|xf64>", text)
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 3
    for line in products:
        assert "precision = [HIGHEST, HIGHEST]" in line, line
    # Records are one loop, the steps between them the loop inside.
    steps = [jaxpr for depth, jaxpr in loops(program.trace(*arguments).jaxpr.jaxpr) if depth >= 2]
    used = {equation.primitive.name for jaxpr in steps for equation in jaxpr.eqns}
    assert {"dot_general", "exp"} <= used
    assert not {name for name in used if name.startswith("scatter")}
    if overlap == "exact":  # otherwise the look at the test set places it off the training supports
        assert "stablehlo.scatter" not in text
