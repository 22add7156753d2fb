"""The programs export for CPU, CUDA and TPU, and their text shows no f64, no scatter in a step and full precision."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

import jaxsign as js
from jaxsign.optimizers.rules import FAMILIES
from jaxsign.training.loop import Loop
from jaxsign.training.mode import choose_mode
from jaxsign.training.schedule import Schedule
from jaxsign.training.start import begin
from jaxsign.training.train import make_train

PLATFORMS = ("cpu", "cuda", "tpu")
RUNS = 3


@functools.cache
def system(engine, overlap):
    """(task, jitted batch of `begin`, its abstract arguments, its abstract result, one run's numbers)."""
    supports = "independent" if engine == "hybrid" else "disjoint"
    problem = js.Problem(n=5, d=90, s=4, m_k=3, m_v=2, n_test=6, supports=supports, overlap=overlap)
    hyper = js.Hyper(sigma_p=2.0)
    task = js.two_layer(problem, engine=engine)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), RUNS))
    numbers = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((RUNS,), jnp.float32), (hyper, 0.0))
    starting = jax.jit(jax.vmap(lambda key, numbers: begin(task, key, numbers[0], None, numbers[1])))
    return task, starting, (keys, numbers), jax.eval_shape(starting, keys, numbers), hyper


def text_of(program, *arguments):
    exported = jax.export.export(program, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return str(exported.mlir_module())


SYSTEMS = [
    ("dense", "exact"), ("dense", "none"), ("support", "none"), ("feature_space", "exact"), ("feature_space", "none"),
    ("feature_space_law", "exact"), ("hybrid", "exact"), ("hybrid", "none"),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "overlap"), SYSTEMS)
def test_begin_exports(engine, overlap):
    _, starting, arguments, *_ = system(engine, overlap)
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


#: What runs fast enough for every day; the others are slow tests.
DAILY = {
    ("dense", "exact", "sign_gd"), ("dense", "none", "adamw"), ("support", "none", "adam"),
    ("feature_space", "exact", "sign_gd"), ("feature_space", "none", "adam"), ("feature_space_law", "exact", "sgd"),
    ("hybrid", "exact", "sign_gd"),
}  # fmt: skip
#: Their eps or temperature is comparable to gradients.
NOT_HOMOGENEOUS = {"smooth_sign_gd", "adamw", "rmsprop"}
CASES = [
    pytest.param(*case, marks=() if case in DAILY else pytest.mark.slow)
    for case in ((engine, overlap, name) for engine, overlap in SYSTEMS for name in FAMILIES)
    if not (case[0] in ("feature_space", "feature_space_law", "hybrid") and case[2] in NOT_HOMOGENEOUS)
]


@pytest.mark.parametrize(("engine", "overlap", "name"), CASES)
def test_training_exports_without_f64_or_scatter_at_full_precision(engine, overlap, name):
    task, _, (keys, numbers), starts, hyper = system(engine, overlap)
    factory, keywords = FAMILIES[name]
    mode = choose_mode(task, factory, [keywords], hyper).mode
    one = make_train(Loop(mode, factory), Schedule.build(7, 2, 4))
    program = jax.jit(jax.vmap(lambda key, start, numbers, floats: one(key, start, numbers[0], floats)))
    floats = {keyword: jax.ShapeDtypeStruct((RUNS,), jnp.float32) for keyword in keywords}
    arguments = keys, starts, numbers, floats
    text = text_of(program, *arguments)
    assert "stablehlo.while" in text
    assert not re.search(r"\bf64\b|xf64>", text)
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 3 or "feature_space" in engine
    for line in products:
        assert "precision = [HIGHEST, HIGHEST]" in line, line
    # Records are one loop, the steps between them the loop inside.
    steps = [jaxpr for depth, jaxpr in loops(program.trace(*arguments).jaxpr.jaxpr) if depth >= 2]
    used = {equation.primitive.name for jaxpr in steps for equation in jaxpr.eqns}
    assert {"exp", "reduce_sum"} <= used
    assert ("dot_general" in used) == ("feature_space" not in engine)
    assert not {name for name in used if name.startswith("scatter")}
    if overlap == "exact":  # otherwise the look at the test set places it off the training supports
        assert "stablehlo.scatter" not in text
