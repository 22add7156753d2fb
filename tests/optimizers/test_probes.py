"""Probes find what kind of function of its gradients an optimizer is, and refuse with what they measured."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.optimizers import probes
from jaxsign.optimizers.probes import homogeneity, reads_gradients_coordinatewise
from jaxsign.optimizers.rules import FAMILIES


def chain(*transforms):
    return lambda: optax.chain(*transforms)


def own_rates(g):
    return g * jnp.arange(1, 1 + g.size, dtype=g.dtype).reshape(g.shape)


RATE = {"learning_rate": 0.1}
PROBED = {
    **{family: (*entry, family != "adamw") for family, entry in FAMILIES.items()},
    "nesterov": (optax.sgd, RATE | {"momentum": 0.9, "nesterov": True}, True),
    "schedule": (lambda: js.sign_gd(optax.exponential_decay(0.1, 2, 0.5)), {}, True),
    "elementwise clip": (chain(optax.clip(1e-3), optax.sgd(0.1)), {}, True),
    "lion with its own decay": (optax.lion, RATE, False),
    "decay in a chain": (chain(optax.add_decayed_weights(1e-2), optax.sgd(0.1)), {}, False),
    "global clip": (chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.1)), {}, False),
    "block clip": (chain(optax.clip_by_block_rms(1e-3), optax.sgd(0.1)), {}, False),
    "normalised": (chain(optax.normalize_by_update_norm(), optax.sgd(0.1)), {}, False),
    "lars": (optax.lars, RATE, False),
    "lamb": (optax.lamb, RATE, False),
    "adafactor": (optax.adafactor, RATE, False),
    "muon": (optax.contrib.muon, RATE, False),
    "noise": (chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)), {}, False),
    "rates of their own": (chain(optax.stateless(lambda updates, _: jax.tree.map(own_rates, updates))), {}, False),
    "asks for the loss": (chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), {}, True),
    "line search": (optax.lbfgs, {}, False),
    "centralised": (chain(optax.centralize(), optax.sgd(0.1)), {}, False),
}


@pytest.mark.parametrize("name", PROBED)
def test_probe_finds_what_a_transform_reads(name):
    factory, keywords, expected = PROBED[name]
    like = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": jax.ShapeDtypeStruct((5,), jnp.float32)}
    assert reads_gradients_coordinatewise(factory, [keywords], like) is expected


def test_probe_answers_for_all_points():
    like = {"w": jnp.zeros((2, 3))}
    probe = functools.partial(reads_gradients_coordinatewise, optax.lion, like=like)
    plain, decayed = RATE | {"weight_decay": 0.0}, RATE | {"weight_decay": 0.1}
    assert probe([plain])
    assert not probe([plain, decayed])


def decayed(*before):
    return optax.chain(*before, optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(1e-3))


NAN = float("nan")
DEGREES = {
    "sign_gd": (js.sign_gd(1e-4), (True, True, 0.0)),
    "signum": (js.signum(1e-4, beta=0.9), (True, True, 0.0)),
    "power": (js.power_gd(1e-4, p=0.25), (True, True, 0.25)),
    "square": (js.power_gd(1e-4, p=2.0), (True, True, 2.0)),
    "sgd": (optax.sgd(0.1), (True, True, 1.0)),
    "momentum": (optax.sgd(0.1, momentum=0.9), (True, True, 1.0)),
    "schedule": (js.sign_gd(optax.exponential_decay(0.1, 50, 0.5)), (True, True, 0.0)),
    "lion with decay": (optax.lion(1e-4, weight_decay=0.1), (True, True, 0.0)),
    "adam, tiny eps": (optax.adam(1e-4, eps=1e-15), (True, True, 0.0)),
    "adam": (optax.adam(1e-4), (True, True, NAN)),
    "adam, eps 0": (optax.adam(1e-4, eps=0.0), (True, False, NAN)),
    "tanh": (js.smooth_sign_gd(1e-4, temperature=1e-5), (True, True, NAN)),
    "coupled decay": (optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)), (True, True, 1.0)),
    "decay under momentum": (
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
        (True, True, NAN),
    ),
    "clip": (optax.chain(optax.clip(1e-3), optax.sgd(0.1)), (True, True, NAN)),
    "one-sided": (
        optax.chain(optax.stateless(lambda g, _: jax.tree.map(jnp.abs, g)), optax.sgd(0.1)),
        (True, False, NAN),
    ),
    "global norm": (optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.1)), (False, True, NAN)),
}


@pytest.mark.parametrize("name", DEGREES)
def test_degree_measures_the_exponent(name):
    transform, (alone, odd, p) = DEGREES[name]
    found = js.degree(transform)
    assert (found.coordinatewise, found.odd) == (alone, odd)
    np.testing.assert_equal(found.p, p)


def test_decay_is_told_from_other_uses_of_the_parameters():
    [plain] = homogeneity(js.sign_gd, [{"learning_rate": 1e-4}])
    [found] = homogeneity(lambda: decayed(optax.scale_by_sign()), [{}])
    [other] = homogeneity(
        lambda: optax.stateless(lambda g, w: jax.tree.map(lambda a, b: a + b * jnp.abs(b), g, w)), [{}]
    )
    assert (plain.decays, plain.reason) == (False, "")
    assert (found.decays, found.reason, found.p) == (True, "", 0.0)
    assert "parameters in another way" in other.reason
    [late] = homogeneity(lambda: optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9)), [{}])
    assert "state remembers the parameters" in late.reason


def test_a_refusal_names_eps_and_what_was_measured():
    accepted, refused, zero = homogeneity(
        optax.adam, [{"learning_rate": 1e-4, "eps": eps} for eps in (1e-15, 1e-8, 0.0)]
    )
    assert accepted.reason == ""
    assert 0 < accepted.deviation[1e-12] < 1  # kept for the manifest
    for word in ("exponent", "eps=1e-08", "1e-15"):
        assert word in refused.reason
    assert "eps=0" in zero.reason


def plain_points(factory):
    """Points of a factory with plain numbers and flags: its defaults, other numbers, every flag turned round."""
    parameters = inspect.signature(factory).parameters
    first = {name: 0.05 for name, p in parameters.items() if p.default is p.empty}
    yield first
    for name, parameter in parameters.items():
        given = parameter.default
        if isinstance(given, bool):
            yield first | {name: not given}
        elif isinstance(given, float):
            yield first | {name: 0.5 * given + 1e-3}
        elif given is None and name in ("momentum",):
            yield first | {name: 0.9}


@pytest.mark.parametrize("factory", probes.KNOWN, ids=lambda factory: factory.__name__)
def test_known_factories_are_what_they_are_known_for(factory):
    """They are not run where they are used, so they are run here."""
    like = [jnp.zeros((3, 4)), jnp.zeros(5)]
    for point in plain_points(factory):
        assert probes._known(factory, point)
        run = probes._program(factory, point, jax.tree.structure([0, 0]))
        assert probes._coordinatewise(run, like, parameters=False), point
        assert probes._coordinatewise(run, like, parameters=True), point


@pytest.mark.parametrize(("factory", "point"), [
    (optax.adam, {"learning_rate": 0.1, "eps": 0.0}),
    (optax.sgd, {"learning_rate": optax.constant_schedule(0.1)}),
    (optax.adamw, {"learning_rate": 0.1}),
    (functools.partial(optax.sgd, 0.1), {}),
    (functools.wraps(optax.sgd)(lambda learning_rate: optax.clip_by_global_norm(1e-3)), {"learning_rate": 0.1}),
])  # fmt: skip
def test_what_is_not_known_is_run(factory, point):
    assert not probes._known(factory, point)
