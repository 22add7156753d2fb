"""Initial features of the two-layer transformer in law, given the noise of the patches alone."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer import data as signal_noise
from jaxsign.systems.two_layer.data import Examples
from jaxsign.systems.two_layer.features import (  # fmt: skip
    FeatureData,
    FeatureParams,
    FeatureTest,
    Inner,
    feature_data,
    mixing_matrix,
)
from jaxsign.systems.two_layer.in_law import LawTest
from jaxsign.systems.two_layer.model import HIGHEST
from jaxsign.systems.two_layer.problem import Hyper, Problem

Array = jax.Array


def init(key: Array, problem: Problem, data: Examples, hyper: Hyper) -> FeatureParams:
    """Draws the inner products of i.i.d. N(0, sigma_0^2) weights with the patches.

        <w, e_1> ~ N(0, sigma_0^2),  <w, xi_i> ~ N(0, sigma_0^2 ||xi_i||^2),  both times 2/m_v for the value vector

    Args:
      key: key of the stream "init".
      problem: shapes.
      data: Examples; padding gets features 0.
      hyper: sigma_0, may be traced.

    Returns:
      FeatureParams.

    References:
      Derived here from the initialisation of arXiv 2410.04870.
    """
    norm = jnp.sqrt(jnp.sum(data.noise * data.noise, axis=2))  # (n, context-1)
    count, patches = norm.shape
    rows = problem.rows
    shared, own = jax.random.split(key)
    signal = jax.random.normal(shared, (2 * rows + 1,))
    # Each example has its own key: the draws do not depend on how many there are.
    noise = jax.vmap(lambda k: jax.random.normal(k, (2 * rows + 1, patches)))(signal_noise.example_keys(own, count))
    noise = jnp.moveaxis(noise, 0, 1) * norm[None]
    sigma, whole = jnp.asarray(hyper.sigma_0, norm.dtype), jnp.ones((), norm.dtype)
    value = sigma * (2 / problem.m_v) ** 0.5
    return FeatureParams(
        Inner(sigma * signal[:rows], sigma * noise[:rows], whole),
        Inner(sigma * signal[rows:-1], sigma * noise[rows:-1], whole),
        Inner(value * signal[-1], value * noise[-1], whole),
        heads=problem.heads,
    )


def to_features(
    data: Examples, test: LawTest, params: FeatureParams, problem: Problem, hyper: Hyper, degree: Array
) -> tuple[FeatureData, FeatureTest, FeatureParams]:
    """The training and test set of feature space, for a transform of degree p.

        <w,xi'>_0 | <w,xi>_0 ~ N(sum_i (<xi',xi_i>/||xi_i||^2) <w,xi_i>_0,
                                 sigma_0^2 (||xi'||^2 - sum_i <xi',xi_i>^2/||xi_i||^2))

    Each test patch has this law given the training patches; two test patches that share coordinates off the training
    supports are drawn independently, which no mean over the test set sees.

    Args:
      data: Examples.
      test: LawTest.
      params: features of the training patches at the start.
      problem: shapes.
      hyper: sigma_0, may be traced.
      degree: p, (); may be traced.

    Returns:
      (FeatureData, FeatureTest, FeatureParams).
    """
    drawn = test.drawn
    mine = feature_data(data, drawn.alpha, problem.m_v, degree)
    square = jnp.sum(drawn.values * drawn.values, axis=2)  # (n_test, context-1)
    mixing: Any = None
    first: Any = None
    if problem.overlap == "exact":
        noise = data.noise.reshape(-1, problem.s)
        # Supports are disjoint and coordinates exchangeable: the training patches may hold the first ones in order.
        coordinate = drawn.indices.reshape(-1, problem.s) - 1
        owner = jnp.minimum(coordinate // problem.s, noise.shape[0] - 1)
        value = jnp.where(coordinate < noise.size, noise[owner, coordinate % problem.s], 0)
        mixing = mixing_matrix(drawn, owner, value, mine.metric, degree)
        norms = jnp.sum(noise * noise, axis=1)
        first = mixing_matrix(drawn, owner, value, norms, jnp.ones((), norms.dtype))
        square = square - jnp.sum(first * first * norms[None], axis=1).reshape(square.shape)
    spread = jnp.sqrt(jnp.maximum(square, 0)) * hyper.sigma_0
    rows = problem.rows

    def rest(standard: Array, inner: Inner, factor: float = 1.0) -> Array:
        own = standard * (factor * spread).reshape((1,) * (standard.ndim - 2) + spread.shape)
        if mixing is None:
            return own
        flat = inner.noise.reshape(*inner.noise.shape[:-2], -1)
        return own + jnp.matmul(flat, (first - mixing).T, precision=HIGHEST).reshape(own.shape)

    z = test.standard
    tests = FeatureTest(
        rest(z[:rows], params.w_q), rest(z[rows:-1], params.w_k), rest(z[-1], params.w_v, (2 / problem.m_v) ** 0.5),
        mixing, drawn.y, drawn.mu, drawn.alpha,
    )  # fmt: skip
    return mine, tests, params
