"""A sweep's identity: what changes its hash, what does not, and how a difference reads."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.sweep.identity.definition import content_hash, definition
from jaxsign.sweep.identity.match import differences


@dataclasses.dataclass(frozen=True)
class Sizes:
    n: int = 4


@functools.cache
def system(sizes, engine="a"):
    return js.Task(
        sample=lambda key, hyper, shared: jnp.ones(sizes.n),
        init=lambda key, data, hyper: {"w": jnp.zeros(2)},
        loss=lambda params, data, hyper: jnp.sum(params["w"] ** 2),
        observe=lambda params, data, test, hyper: {"norm": jnp.sum(params["w"] ** 2)},
    )


def last(trace):
    return {"last": trace["norm"][-1]}


def first(trace):
    return {"last": trace["norm"][0]}


def scaled_last(trace, factor):
    return {"last": factor * trace["norm"][-1]}


def powers(exponent):
    def summary(trace):
        return {"last": trace["norm"][-1] ** exponent}

    return summary


def scaled(factor, offset=0.0):
    """A transform of the user's own, with numbers in its closures."""

    def init(params):
        return optax.EmptyState()

    def update(updates, state, params=None):
        return jax.tree.map(lambda g: factor * g + offset, updates), state

    return optax.GradientTransformation(init, update)


def edited(version):
    """One name, two sources: a function before and after an edit."""
    if version == 1:

        def summary(trace):
            return {"last": trace["norm"][-1] + 1}

    else:

        def summary(trace):
            return {"last": trace["norm"][-1] + 2}

    return summary


def norm(params, data, test, hyper):
    return jnp.sum(params["w"])


OPTIMIZERS = {"gd": js.grid(optax.sgd, learning_rate=[0.1, 0.2]), "sign": js.sign_gd(0.1)}


def sweep(**changes):
    base = {
        "system": system, "problem": Sizes(), "hyper": {"slope": 1.0, "tilt": 0.0},
        "steps": 10, "record": 10, "test_every": [0],
        "summary": last,
        "optimizers": OPTIMIZERS,
        "axes": {"slope": [1.0, 2.0], "seed": 3},
    }  # fmt: skip
    return js.Sweep(**(base | changes))


def name_of(**changes):
    return content_hash(definition(sweep(**changes)))


def test_the_definition_is_json_that_comes_back_equal():
    made = definition(
        sweep(observables=["norm", norm], shared={"images": np.arange(6.0).reshape(2, 3)}, problem=Sizes(np.int64(4)))
    )
    assert json.loads(json.dumps(made)) == made
    assert made["hyper"] == {"slope": 1.0, "tilt": 0.0}
    assert made["problem"] == {"n": 4}
    assert (made["steps"], made["record"], made["test"]) == (10, [0, 10], [0])
    assert made["seeds"] == [0, 1, 2]
    assert made["axes"] == [{"members": ["slope"], "values": [[1.0], [2.0]]}]
    assert made["optimizers"]["gd"]["points"] == [{"learning_rate": 0.1}, {"learning_rate": 0.2}]
    assert made["dtype"] == str(jnp.zeros(()).dtype)


def test_the_hash_depends_on_content_alone():
    assert name_of() == name_of()
    assert name_of(hyper={"tilt": 0.0, "slope": 1.0}) == name_of()  # order of a dict
    assert name_of(record=[0, 10]) == name_of(record=10)  # two ways to say the same steps
    assert name_of(axes={"slope": [1.0, 2.0], "seed": [0, 1, 2]}) == name_of()
    assert name_of(axes={"slope": np.array([1.0, 2.0]), "seed": np.int64(3)}) == name_of()
    assert name_of(problem=Sizes(np.int32(4))) == name_of()
    assert content_hash({"a": [1, {"b": 2, "c": 3}], "d": 4}) == content_hash({"d": 4, "a": [1, {"c": 3, "b": 2}]})


CHANGES = {
    "steps": {"steps": 11},
    "record": {"record": 5},
    "test steps": {"record": 5, "test_every": 5},
    "seeds": {"axes": {"slope": [1.0, 2.0], "seed": 4}},
    "order of seeds": {"axes": {"slope": [1.0, 2.0], "seed": [1, 0, 2]}},
    "a hyper number": {"hyper": {"slope": 1.0, "tilt": 1e-12}},
    "an axis value": {"axes": {"slope": [1.0, 2.0 + 1e-12], "seed": 3}},
    "another axis": {"axes": {"slope": [1.0, 2.0], "tilt": [0.0], "seed": 3}},
    "the problem": {"problem": Sizes(5)},
    "the engine": {"engine": "a"},
    "observables": {"observables": ["norm"]},
    "an observed function": {"observables": [norm]},
    "trainable": {"trainable": ["w"]},
    "no summary": {"summary": None},
    "another summary": {"summary": first},
    "a source": {"summary": edited(1)},
    "an edited source of the same name": {"summary": edited(2)},
    "a number in a summary's closure": {"summary": powers(1.0)},
    "another number in it": {"summary": powers(2.0)},
    "a bound number": {"summary": functools.partial(scaled_last, factor=2.0)},
    "another bound number": {"summary": functools.partial(scaled_last, factor=3.0)},
    "the trace": {"keep_trace": False},
    "shared arrays": {"shared": np.arange(3.0)},
    "other shared values": {"shared": np.arange(3.0) + 1},
    "a learning rate": {"optimizers": {**OPTIMIZERS, "gd": js.grid(optax.sgd, learning_rate=[0.1, 0.3])}},
    "a number in a transform": {"optimizers": {**OPTIMIZERS, "sign": js.sign_gd(0.2)}},
    "a family's name": {"optimizers": {"sgd": OPTIMIZERS["gd"], "sign": OPTIMIZERS["sign"]}},
    "a factory": {"optimizers": {**OPTIMIZERS, "gd": js.grid(optax.adam, learning_rate=[0.1, 0.2])}},
}  # fmt: skip


def test_every_field_changes_the_hash():
    names = {change: name_of(**changes) for change, changes in CHANGES.items()} | {"nothing": name_of()}
    assert len(set(names.values())) == len(names)


def transforms():
    schedule = optax.warmup_cosine_decay_schedule
    return [
        optax.sgd(0.1), optax.sgd(0.2), optax.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.adam(0.1), optax.adam(0.1, b2=0.99), optax.adam(0.1, eps=1e-15), optax.adamw(0.1), optax.lion(0.1),
        optax.adamw(0.1, weight_decay=1e-2), js.sign_gd(0.1), js.signum(0.1), js.signum(0.1, beta=0.5),
        js.power_gd(0.1), js.power_gd(0.1, p=0.25), js.smooth_sign_gd(0.1), js.smooth_sign_gd(0.1, temperature=1e-3),
        scaled(1.0), scaled(2.0), scaled(1.0, 1.0), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        optax.chain(optax.clip_by_global_norm(2.0), optax.sgd(0.1)), optax.sgd(schedule(0.0, 0.1, 5, 10)),
        optax.sgd(schedule(0.0, 0.1, 5, 20)), optax.sgd(optax.exponential_decay(0.1, 5, 0.5)), optax.rmsprop(0.1),
    ]  # fmt: skip


def test_transforms_are_known_by_the_numbers_they_closed_over():
    one, two = ([name_of(optimizers={"mine": t}) for t in transforms()] for _ in range(2))
    assert one == two
    assert len(set(one)) == len(one)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"summary": lambda trace: {"last": trace["norm"][-1]}}, {"summary": lambda trace: {"last": trace["norm"][0]}}),
        ({"optimizers": {"mine": optax.sgd(lambda step: 0.1)}}, {"optimizers": {"mine": optax.sgd(lambda step: 0.2)}}),
        ({"system": lambda sizes: system(sizes)}, {"system": lambda sizes: system(sizes, "b")}),
    ],
)
def test_lambdas_are_told_apart_by_their_code(one, two):
    assert name_of(**one) == name_of(**one)
    assert name_of(**one) != name_of(**two)


def test_an_observed_lambda_has_no_name_for_its_results():
    with pytest.raises(ValueError, match=r"observables is a lambda.*name with def"):
        definition(sweep(observables=[lambda params, data, test, hyper: params["w"]]))


def test_something_without_a_plain_description_is_refused():
    with pytest.raises(ValueError, match=r"hyper holds .*object.*no plain description"):
        definition(sweep(hyper={"slope": 1.0, "tilt": object()}, axes={"seed": 1}))


def test_differences_are_readable_lines():
    old = definition(sweep())
    new = definition(sweep(steps=20, record=10, hyper={"slope": 1.0, "tilt": 0.5}))
    assert differences(old, old) == []
    assert differences(old, new) == ["hyper.tilt: 0.0 -> 0.5", "steps: 10 -> 20", "record: [0, 10] -> [0, 10, 20]"]
    assert differences({"a": 1}, {"b": 2}) == ["a: 1 -> null", "b: null -> 2"]
    (seeds,) = differences(definition(sweep(axes={"slope": [1.0, 2.0], "seed": 500})), old)
    assert seeds.startswith("seeds: [0, 1, 2")
    assert seeds.endswith("... (500 entries) -> [0, 1, 2]")
    assert len(seeds) < 200
    (rate,) = differences(
        old, definition(sweep(optimizers={**OPTIMIZERS, "gd": js.grid(optax.sgd, learning_rate=0.1)}))
    )
    assert rate == 'optimizers.gd.points: [{"learning_rate": 0.1}, {"learning_rate": 0.2}] -> [{"learning_rate": 0.1}]'


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import test_definition as t
print(t.name_of(), *[t.name_of(optimizers={"mine": one}) for one in t.transforms()], t.name_of(summary=t.powers(2.0)))
"""


def test_hashes_are_the_same_in_another_process():
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    arguments = [sys.executable, "-c", CHILD, os.path.dirname(__file__)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here = [name_of(), *[name_of(optimizers={"mine": t}) for t in transforms()], name_of(summary=powers(2.0))]
    assert done.stdout.split() == here


@dataclasses.dataclass(frozen=True)
class Above:
    level: float

    def __call__(self, trace):
        return {"x": jnp.mean(trace["norm"] > self.level)}

    def method(self, trace):
        return self(trace)


def defaulted(k):
    def summary(trace, k=k):
        return {"x": trace["norm"][-1] * k}

    return summary


class Constant:
    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return self.value


@pytest.mark.parametrize(
    "make",
    [
        lambda k: {"summary": Above(k)},
        lambda k: {"summary": Above(k).method},
        lambda k: {"summary": defaulted(k)},
        lambda k: {"optimizers": {"a": optax.sgd(Constant(k))}},
    ],
    ids=["instance", "method", "default", "schedule"],
)
def test_a_number_that_a_callable_holds_changes_the_hash(make):
    assert name_of(**make(1.0)) != name_of(**make(2.0))
