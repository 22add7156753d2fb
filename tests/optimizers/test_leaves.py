"""Optimizers with a rule of their own for each array: measured array by array, exact in feature space or refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.optimizers.probes import homogeneity
from jaxsign.training.mode import NotExact, choose_mode

ADAM = {"b1": 0.9, "b2": 0.99, "eps": 1e-15}
LIKE = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(()), "c": jnp.zeros(5)}


def by_name(rules):
    """A transform with one rule for every name of LIKE."""
    return lambda: optax.partition({name: rules[name] for name in LIKE}, {name: name for name in LIKE})


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"a": js.sign_gd(0.1), "b": optax.adam(0.1, **ADAM), "c": optax.adam(0.2, **ADAM)}, (0.0, False, False, "")),
        ({"a": js.sign_gd(0.1), "b": js.sign_gd(0.3), "c": optax.set_to_zero()}, (0.0, True, False, "")),
        ({"a": optax.sgd(0.1), "b": optax.sgd(0.3, momentum=0.9), "c": optax.set_to_zero()}, (1.0, False, False, "")),
        ({"a": js.sign_gd(0.1), "b": optax.lion(0.1), "c": js.sign_gd(0.1)}, (0.0, False, True, "")),
        ({"a": js.sign_gd(0.1), "b": js.sign_gd(0.1), "c": optax.sgd(0.1)}, "0 of a, 1 of c"),
        ({"a": js.sign_gd(0.1), "b": optax.adam(0.1, eps=1e-3), "c": js.sign_gd(0.1)}, "b: its updates are not homo"),
        (dict.fromkeys("abc", optax.set_to_zero()), "it moves nowhere"),
    ],
)
def test_every_rule_of_a_tree_is_measured(rules, expected):
    [found] = homogeneity(by_name(rules), [{}], LIKE)
    if isinstance(expected, str):
        assert expected in found.reason
    else:
        assert (found.p, found.signs, found.decays, found.reason) == expected


def test_one_rule_for_all_is_measured_as_that_of_one_array():
    points = [{"learning_rate": 0.1, "weight_decay": 0.1}]
    assert homogeneity(optax.lion, points, LIKE) == homogeneity(optax.lion, points)


@pytest.fixture(scope="module")
def setting():
    problem = js.Problem(n=4, d=60, s=5, m_k=3, m_v=3, n_test=20, supports="disjoint")
    return problem, js.Hyper(sigma_p=2.0)


def of_features(learning_rate):
    """Adam for the value vector's product with the signal, SignGD for all else, by the names of features."""

    def rule(path, _):
        matrix, part = (entry.name for entry in path)
        return "adam" if (matrix, part) == ("w_v", "signal") else "sign"

    rules = {"adam": optax.adam(learning_rate, **ADAM), "sign": js.sign_gd(learning_rate)}
    return optax.partition(rules, lambda params: jax.tree_util.tree_map_with_path(rule, params))


def of_weights(learning_rate):
    """The same for the weights: Adam for coordinate 0 of the value matrices."""
    adam, sign = optax.adam(learning_rate, **ADAM), js.sign_gd(learning_rate)

    def update(gradients, state, params=None):
        one, state = adam.update(gradients, state, params)
        other, _ = sign.update(gradients, sign.init(gradients), params)
        first = jnp.arange(gradients.w_v.shape[-1]) == 0
        return dataclasses.replace(other, w_v=jnp.where(first, one.w_v, other.w_v)), state

    return optax.GradientTransformation(adam.init, update)


def trained(setting, engine, factory, learning_rate):
    """The trace of 60 steps with one engine."""
    problem, hyper = setting
    task, grid = js.two_layer(problem, engine=engine), js.grid(factory, learning_rate=learning_rate)
    names = ["train_loss", "value_signal"]
    return js.train(jax.random.key(1), task, hyper, grid, steps=60, record=10, observables=names).trace


def test_a_rule_for_one_feature_is_the_rule_for_its_coordinate(setting):
    features = trained(setting, "feature_space", of_features, 2e-3)
    weights, alone = (trained(setting, "dense", rule, 2e-3) for rule in (of_weights, js.sign_gd))
    for name in features:
        np.testing.assert_allclose(features[name], weights[name], rtol=2e-3, atol=2e-5)
    assert abs(alone["value_signal"][-1] - weights["value_signal"][-1]) > 0.05  # so that the rule counts


def with_fallback(learning_rate):
    """Names features, and takes any other tree for SignGD's: the probe of one array once saw SignGD here."""
    rules = {"adam": optax.adam(learning_rate, **ADAM), "sign": js.sign_gd(learning_rate)}

    def rule(path, _):
        return "adam" if "noise" in jax.tree_util.keystr(path) else "sign"

    return optax.partition(rules, lambda params: jax.tree_util.tree_map_with_path(rule, params))


def by_shape(learning_rate):
    """Decays matrices only, as is usual; features of a weight matrix have other shapes."""
    matrices = optax.masked(optax.add_decayed_weights(0.1), lambda params: jax.tree.map(lambda x: x.ndim > 1, params))
    return optax.chain(optax.scale_by_sign(), matrices, optax.scale_by_learning_rate(learning_rate))


@pytest.mark.parametrize("factory", [with_fallback, by_shape], ids=lambda factory: factory.__name__)
@pytest.mark.parametrize("engine", ["feature_space", "feature_space_law"])
def test_what_tells_features_from_their_weights_is_refused(setting, factory, engine):
    problem, hyper = setting
    if engine == "feature_space_law":
        problem = dataclasses.replace(problem, overlap="none")
    with pytest.raises(NotExact, match="by another rule than the weights that it stands for, by name or by shape"):
        choose_mode(js.two_layer(problem, engine=engine), factory, [{"learning_rate": 0.1}], hyper)


def by_matrix(learning_rate):
    """SignGD with a larger learning rate for values."""
    rules = {"w_v": js.sign_gd(5 * learning_rate), "w_q": js.sign_gd(learning_rate), "w_k": js.sign_gd(learning_rate)}
    return optax.partition(rules, lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[0].name, params))


def test_a_rule_for_each_matrix_is_exact_in_feature_space(setting):
    features, weights = (trained(setting, engine, by_matrix, 1e-3) for engine in ("feature_space", "dense"))
    for name in features:
        np.testing.assert_allclose(features[name], weights[name], rtol=2e-3, atol=2e-5)


def by_size(learning_rate):
    """Adam for large arrays, SignGD for small ones."""
    rules = {"adam": optax.adam(learning_rate, **ADAM), "sign": js.sign_gd(learning_rate)}
    return optax.partition(rules, lambda params: jax.tree.map(lambda x: "adam" if x.size > 100 else "sign", params))


def test_a_compact_tree_whose_arrays_get_other_rules_is_not_used():
    problem, hyper = js.Problem(n=4, d=400, s=5, m_k=3, m_v=3, n_test=20), js.Hyper(sigma_p=2.0)
    auto = choose_mode(js.two_layer(problem, engine="auto"), by_size, [{"learning_rate": 0.1}], hyper)
    assert auto.task.name == "two_layer"
    assert "two_layer_support needs" in auto.why
    with pytest.raises(NotExact, match=r"it moves w_q\.\w+ by another rule than in full, by its shape"):
        choose_mode(js.two_layer(problem, engine="support"), by_size, [{"learning_rate": 0.1}], hyper)


ASCENT = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
ASKING = {
    "polyak_sgd": (optax.polyak_sgd(1e3), lambda loss, value: {"value": value}),
    "sam": (
        optax.contrib.sam(optax.sgd(0.1), ASCENT, sync_period=2, opaque_mode=True),
        lambda loss, value: {"grad_fn": lambda params, _: jax.grad(loss)(params)},
    ),
}


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("engine", ["dense", "auto"])
def test_an_optimizer_that_asks_for_the_loss_trains_like_a_loop_over_all_weights(setting, name, engine):
    """Both measure a norm over all weights, of which the compact tree has fewer: it must not be used for them."""
    problem, _ = setting
    hyper = js.Hyper(sigma_p=2.0, sigma_0=0.05)
    transform, extra = ASKING[name]
    key, task = jax.random.key(0), js.two_layer(problem, engine="dense")

    @jax.jit
    def start(key):
        data = task.sample(js.stream(key, "data"), hyper)
        params = task.init(js.stream(key, "init"), data, hyper)
        return data, params, transform.init(params)

    data, params, state = start(key)
    losses = []

    def loss(weights):
        return task.loss(weights, data, hyper)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = transform.update(gradient, state, params, **extra(loss, value))
        return value, optax.apply_updates(params, updates), state

    for _ in range(21):
        value, params, state = step(params, state)
        losses.append(float(value))
    run = js.train(
        key, js.two_layer(problem, engine=engine), hyper, transform, steps=20, record=1, observables=["train_loss"]
    )
    assert losses[-1] < losses[0] / 2
    np.testing.assert_allclose(run.trace["train_loss"], losses, rtol=1e-4, atol=1e-6)
    with pytest.raises(NotExact, match="two_layer_support needs"):
        choose_mode(js.two_layer(problem, engine="support"), lambda: transform, [{}], hyper)
