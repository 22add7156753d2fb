"""The closed-form gradient of feature space against differentiation, and its signs where products underflow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.systems.two_layer.feature_gradient import value_and_gradient
from jaxsign.systems.two_layer.features import FeatureData, FeatureParams, Inner

ROWS, N = 6, 7
HYPER = js.Hyper(sigma_p=2.0)


def draw(seed, heads=2, alpha=0.3, size=0.5, partial=True, columns=0):
    """FeatureParams and FeatureData of random numbers, in the default float dtype; `columns` coordinates are shared."""
    rng, dtype = np.random.default_rng(seed), jnp.zeros(()).dtype
    one = jnp.ones((), dtype)

    def inner(*shape):
        signal, noise = size * rng.standard_normal(shape), size * rng.standard_normal((*shape, N, 1))
        weights = jnp.asarray(0.1 * size * rng.standard_normal((*shape, columns)), dtype) if columns else None
        return Inner(jnp.asarray(signal, dtype), jnp.asarray(noise, dtype), one, weights)

    shared = None
    if columns:  # every coordinate has two or three users, but for the last one, which fills a slot
        shared = rng.standard_normal((N, columns))
        for j in range(columns):
            shared[rng.permutation(N)[2 + j % 2 :], j] = 0
        shared[:, -1] = 0
        shared = jnp.asarray(shared, dtype)

    y = rng.choice([-1.0, 1.0], N)
    weight = np.where(np.arange(N) < 5, 0.2, 0.0) if partial else np.full(N, 1 / N)
    data = FeatureData(
        y=jnp.asarray(y, dtype), y_clean=jnp.asarray(y * rng.choice([-1.0, 1.0], N), dtype),
        signal_slot=jnp.zeros(N, jnp.int32), mu=jnp.asarray(1.5, dtype), alpha=jnp.asarray(alpha, dtype),
        metric=jnp.ones((N, 1), dtype), value_metric=one, weight=jnp.asarray(weight, dtype), shared=shared,
    )  # fmt: skip
    return FeatureParams(inner(ROWS), inner(ROWS), inner(), heads=heads), data


def loss_of(params, data, residual=0.0):
    task = js.two_layer(js.Problem(n=N, d=50, s=2, m_k=3, m_v=2, heads=2, supports="disjoint"), engine="feature_space")
    return task.loss(params, data, dataclasses.replace(HYPER, residual=residual))


@pytest.mark.x64
@pytest.mark.parametrize(
    ("heads", "alpha", "residual", "columns"),
    [(1, 0.0, 0.0, 0), (2, 0.3, 0.0, 0), (2, 0.3, 0.7, 11), (1, 0.0, -1.5, 0), (1, 0.0, 0.0, 8)],
)
def test_the_gradient_is_that_of_the_loss(eps, heads, alpha, residual, columns):
    params, data = draw(0, heads, alpha, columns=columns)
    loss, slope = jax.jit(value_and_gradient, static_argnums=2)(params, data, False, residual)
    signs = jax.jit(value_and_gradient, static_argnums=2)(params, data, True, residual)[1]
    expected, theirs = jax.jit(jax.value_and_grad(loss_of))(params, data, residual)
    for mine, other in zip(jax.tree.leaves(signs), jax.tree.leaves(theirs)):
        own = other.ndim > 1 and other.shape[-1] == 1  # features of examples, of which some have no weight
        there = np.broadcast_to(np.asarray(data.weight > 0)[:, None], other.shape) if own else True
        np.testing.assert_array_equal(np.sign(mine)[there], np.sign(other)[there])
    np.testing.assert_allclose(loss, expected, rtol=20 * eps)
    for mine, other in zip(jax.tree.leaves(slope), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(mine, other, rtol=500 * eps, atol=50 * eps * np.abs(other).max())


def by_hand(params, data, exponent):
    """The gradient's signs in exact arithmetic: terms are kept as (sign, logarithm), sums divided by the largest."""
    wide = np.longdouble
    x = np.zeros((N, 1), wide) if data.shared is None else np.asarray(data.shared, wide)

    def noise(inner):
        weights = np.zeros((*inner.signal.shape, 1)) if inner.shared is None else inner.shared
        return np.asarray(inner.noise[..., 0], wide) + np.asarray(weights, wide) @ x.T

    q, k, v = map(noise, (params.w_q, params.w_k, params.w_v))
    q_mu, k_mu = (np.asarray(inner.signal, wide) for inner in (params.w_q, params.w_k))
    v_mu = wide(params.w_v.signal)
    c, y = np.asarray(data.y_clean * data.mu, wide), np.asarray(data.y, wide)
    z_1 = c * (c * (q_mu @ k_mu) - q_mu @ k)
    z_2 = c * (k_mu @ q) - (q * k).sum(0)
    log_a, log_b = (-np.abs(z) - 2 * np.log1p(np.exp(-np.abs(z))) for z in (z_1, z_2))
    s = 1 / (1 + np.exp(-z_1)) + 1 / (1 + np.exp(-z_2))
    margin = y * (s * c * v_mu + (2 - s) * v)
    log_p = -np.log1p(np.exp(-np.abs(margin))) - np.maximum(margin, 0)
    e, gap = -y * (c * v_mu - v), c * k_mu[:, None] - k
    low = np.minimum(log_a, log_b)  # both over the smaller: neither underflows, and ratios stay
    assert (np.maximum(log_a, log_b) - low).max() < exponent
    pull = np.exp(log_a - low) * c * q_mu[:, None] + np.exp(log_b - low) * q

    def vote(log_weight, terms):
        return np.sign((np.exp(log_weight - log_weight.max()) * terms).sum(-1))

    def columns(log_weight, terms):
        """Coordinate by coordinate, over its users alone."""
        votes = [vote(log_weight[x[:, j] != 0], (terms * x[:, j])[..., x[:, j] != 0]) for j in range(x.shape[1] - 1)]
        return np.stack([*votes, np.zeros(terms.shape[:-1])], -1)

    log_n = np.log((1 / (1 + np.exp(z_1))) + (1 / (1 + np.exp(z_2))))
    return {
        "w_q": (vote(log_p + log_a, c * e * gap), np.sign(e * gap), columns(log_p + log_b, e * gap)),
        "w_k": (vote(log_p + low, c * e * pull), np.sign(-e * pull), columns(log_p + low, -e * pull)),
        "w_v": (vote(log_p, -y * s * c), np.sign(-y), columns(log_p + log_n, -y)),
    }


@pytest.mark.parametrize("columns", [0, 12])
@pytest.mark.parametrize(("seed", "size"), [(0, 0.5), (1, 2.0), (2, 6.0), (3, 9.0)])
def test_signs_are_right_where_the_products_underflow(seed, size, columns):
    """At size 9 attention and loss decay to exp(-300) and less: far below what 32 bits hold."""
    params, data = draw(seed, heads=1, alpha=0.0, size=size, partial=False, columns=columns)
    _, slope = jax.jit(value_and_gradient, static_argnums=2)(params, data, True)
    plain = jax.jit(jax.grad(loss_of))(params, data)
    for name, (signal, noise, weights) in by_hand(params, data, 5000).items():
        mine = getattr(slope, name)
        np.testing.assert_array_equal(np.sign(mine.signal), signal, err_msg=name)
        np.testing.assert_array_equal(np.sign(mine.noise[..., 0]), noise, err_msg=name)
        assert mine.kept == 0
        if columns:
            np.testing.assert_array_equal(np.sign(mine.shared), weights, err_msg=name)
            assert np.all(weights[..., :-1] != 0)
    if size == 9.0 and jnp.zeros(()).dtype == jnp.float32:
        assert np.any(np.asarray(plain.w_q.noise) == 0)  # what the votes are there for
        assert not columns or np.any(np.asarray(plain.w_q.shared)[:, :-1] == 0)


@pytest.mark.x64
def test_signs_are_those_of_the_gradient_with_feature_and_label_noise(eps):
    del eps
    for seed in range(5):
        params, data = draw(seed, heads=2, alpha=0.4)
        signs, slope = (jax.jit(value_and_gradient, static_argnums=2)(params, data, s)[1] for s in (True, False))
        for mine, other in zip(jax.tree.leaves(signs), jax.tree.leaves(slope)):
            np.testing.assert_array_equal(np.sign(mine), np.sign(other))


def test_what_has_no_weight_moves_nothing():
    params, data = draw(0)
    gradient = jax.jit(value_and_gradient, static_argnums=2)
    _, slope = gradient(params, data, True)
    assert not np.any(np.asarray(slope.w_q.noise)[:, 5:])
    other = dataclasses.replace(params, w_v=params.w_v._replace(noise=params.w_v.noise.at[5:].set(99.0)))
    _, again = gradient(other, data, True)
    np.testing.assert_array_equal(again.w_q.signal, slope.w_q.signal)
