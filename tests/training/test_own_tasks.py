"""Mistakes with a task of one's own end in one line that names the function and what it returned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js


def _observe(params, data, test, hyper):
    seen = {"train_loss": jnp.mean((data @ params["w"]) ** 2), "w": params["w"]}
    return seen if test is None else seen | {"test_loss": jnp.mean((test @ params["w"]) ** 2)}


LINE = js.Task(
    sample=lambda key, hyper, shared: jax.random.normal(key, (8, 3)),
    sample_test=lambda key, hyper, shared: jax.random.normal(key, (8, 3)),
    init=lambda key, data, hyper: {"w": jnp.ones(3)},
    loss=lambda params, x, hyper: jnp.mean((x @ params["w"]) ** 2),
    observe=_observe,
    dims={"w": ("coordinate",)},
    name="line",
)


def train(**changes):
    task = dataclasses.replace(LINE, **changes)
    return js.train(jax.random.key(0), task, {"rate": 1.0}, optax.sgd(0.1), steps=4, record=2)


def swept(out, **changes):
    settings = {"problem": None, "hyper": {"rate": 1.0}, "optimizers": {"gd": optax.sgd(0.1)}, "steps": 4, "record": 2}
    return js.run_sweep(js.Sweep(system=dataclasses.replace(LINE, **changes), **settings), out, progress=False)


BUILT = {
    "too few arguments": ({"loss": lambda params, batch: 0.0}, ["loss", "(params, batch, hyper)", "(params, batch)"]),
    "no key": ({"batch": lambda data: data}, ["batch must be a function (key, data, hyper)", "(data)"]),
    "monitor": ({"watch": {"far": lambda params: True}}, ["watch['far']", "(params, batch, hyper, gradient)"]),
    "no dict of monitors": ({"watch": [max]}, ["watch must be a dict"]),
    "no function": ({"sample": 3}, ["sample must be a function (key, hyper, shared), got 3"]),
    "left out": ({"observe": None}, ["observe must be a function", "got None"]),
}


@pytest.mark.parametrize("name", BUILT)
def test_a_function_that_cannot_be_called_is_refused_when_the_task_is_built(name):
    changes, words = BUILT[name]
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(LINE, **changes)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_any_function_that_takes_the_arguments_by_position_will_do():
    def loss(*arguments, scale=2.0):
        return scale * LINE.loss(*arguments)

    assert train(loss=jax.jit(loss)).status == 0


def returns(value):
    return lambda *_: value


def init(**more):
    return lambda key, data, hyper: {"w": jnp.ones(3), **more}


TRAINED = {
    "loss of examples": (
        {"loss": lambda p, x, h: x @ p["w"]},
        ["loss of line", "one real number", "float", "[8]", "mean"],
    ),
    "loss with a length of 1": ({"loss": lambda p, x, h: jnp.sum(x @ p["w"], keepdims=True)}, ["loss of line", "[1]"]),
    "loss with extras": ({"loss": lambda p, x, h: (jnp.sum(p["w"]), {})}, ["loss of line", "one real number", "tuple"]),
    "loss of integers": ({"loss": lambda p, x, h: jnp.sum(p["w"]).astype(int)}, ["loss of line", "int", "[]"]),
    "loss without return": ({"loss": returns(None)}, ["loss of line", "None", "return is missing"]),
    "loss of nothing": ({"loss": returns(1.0)}, ["loss of line", "got float"]),
    "integer parameters": ({"init": init(n=jnp.arange(3))}, ["parameters of line", "params['n']", "[3]", "trainable="]),
    "flags among parameters": ({"init": init(on=jnp.ones(2, bool))}, ["parameters of line", "bool[2]", "params['on']"]),
    "a key among parameters": ({"init": lambda k, d, h: {"w": jnp.ones(3), "k": k}}, ["key<fry>[]", "params['k']"]),
    "words among parameters": ({"init": init(name="x")}, ["init must return arrays", "str 'x'", "['name']"]),
    "no parameters": ({"init": returns({})}, ["init must return parameters, got {} of line"]),
    "words among data": ({"sample": returns({"name": "x"})}, ["sample must return arrays", "['name']"]),
    "one scale": ({"scale": returns(2.0)}, ["scale of line", "tree like params", "PyTreeDef(*)"]),
    "a scale of another shape": ({"scale": returns({"w": jnp.ones(2)})}, ["scale['w'] of line", "(3,)", "[2]"]),
    "gradient alone": ({"gradient": lambda p, x, h, signs: p}, ["gradient of line", "(loss, tree like params)"]),
    "gradient of a part": (
        {"gradient": lambda p, x, h, signs: (jnp.sum(p["w"]), p["w"])},
        ["gradient of line", "PyTreeDef(*)"],
    ),
    "a monitor of every weight": ({"watch": {"far": lambda p, b, h, g: p["w"] > 0}}, ["'far' of line", "bool[3]"]),
    "observe returns an array": ({"observe": lambda p, d, t, h: p["w"]}, ["observable must be a dict of name: array"]),
    "another shape with a test set": (
        {"observe": lambda p, d, t, h: {"w": p["w"] if t is None else jnp.sum(p["w"])}, "dims": {}},
        ["observable 'w' must have one shape, got (3,) where test is None and () otherwise"],
    ),
    "dims too long": ({"dims": {"w": ("row", "column")}}, ["'w' has 1 dimensions, (3,)", "['row', 'column']"]),
    "dims too short": ({"dims": {"w": ()}}, ["'w' has 1 dimensions", "[]"]),
    "dims of the scalar": ({"dims": {"train_loss": ("row",)}}, ["'train_loss' has 0 dimensions", "['row']"]),
    "dims of the steps": ({"dims": {"w": ("step",)}}, ["'w' has 'step', which every result has besides"]),
    "dims of no dict": ({"dims": [("w", "row")]}, ["dims of a Task must be a dict of observables", "[('w', 'row')]"]),
    "attrs of no dict": ({"attrs": None}, ["attrs of a Task must be a dict of observables", "None"]),
    "prepare returns one thing": (
        {"prepare": lambda data, test, params, hyper, degree: data},
        ["prepare must return (data, test, params), got a "],
    ),
    "dims without a tuple": ({"dims": {"w": None}}, ["dims of the observable 'w' must be a tuple", "None"]),
}


@pytest.mark.parametrize("how", ["train", "sweep", "stored"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_wrong_return_is_refused_in_one_line(name, how, tmp_path):
    changes, words = TRAINED[name]
    with pytest.raises(ValueError) as caught:
        train(**changes) if how == "train" else swept(tmp_path / "out" if how == "stored" else None, **changes)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_users_own_comes_through_with_a_note_on_the_missing_test_set():
    with pytest.raises(TypeError, match="NoneType") as caught:
        train(observe=lambda params, data, test, hyper: {"gap": jnp.mean(test @ params["w"])})
    assert caught.value.__notes__[0].startswith("observe is called with test=None between the test steps")


def test_integers_that_are_not_trained_are_welcome():
    task = dataclasses.replace(LINE, init=init(n=jnp.arange(3)))
    run = js.train(jax.random.key(0), task, {}, optax.sgd(0.1), steps=4, trainable=("w",))
    np.testing.assert_array_equal(run.params["n"], [0, 1, 2])


def test_scales_may_be_numbers_of_a_leaf():
    twice = train(scale=returns({"w": jnp.asarray(2.0)})).params["w"]
    run = js.train(jax.random.key(0), LINE, {}, optax.sgd(0.2), steps=4)
    np.testing.assert_allclose(twice, run.params["w"], rtol=1e-5)
