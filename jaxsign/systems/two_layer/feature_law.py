"""The training of feature space in distribution: patches and initial features are drawn without any array of size d."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer import data as signal_noise
from jaxsign.systems.two_layer.data import Examples, PaddedSize, TestSet
from jaxsign.systems.two_layer.features import (  # fmt: skip
    FeatureData,
    FeatureParams,
    FeatureTest,
    Inner,
    feature_data,
    mixing_matrix,
)
from jaxsign.systems.two_layer.model import HIGHEST
from jaxsign.systems.two_layer.problem import Hyper, Problem
from jaxsign.validation.values import field_names

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class TestDraws:
    """A test set, and the randomness of its initial features that the training patches do not determine.

    Args:
      drawn: the test set of the same key; with overlap="none" its indices are not used.
      standard: (2*rows + 1, n_test, context-1) standard normal draws.
    """

    __test__ = False  # not a pytest class

    drawn: TestSet
    standard: Array


jax.tree_util.register_dataclass(TestDraws, data_fields=field_names(TestDraws), meta_fields=[])


def sample(key: Array, problem: Problem, hyper: Hyper, padded: PaddedSize) -> Examples:
    """Draws a training set with disjoint supports, without their coordinates: the distribution does not depend on them.

    Args:
      key: key of the stream "data".
      problem: shapes.
      hyper: numbers, may be traced.
      padded: slots for examples, and how many examples there are.

    Returns:
      Examples: the labels and noise values of `signal_noise.sample` with the same key.

    References:
      arXiv 2410.04870, data model.
    """
    return signal_noise.examples(key, problem, hyper, padded)[0]


def sample_test(key: Array, problem: Problem, hyper: Hyper, padded: PaddedSize) -> TestDraws:
    """Draws n_test fresh examples and the standard draws: O(s^2) operations a patch, for every d.

    Args:
      key: key of the stream "test".
      problem: shapes and the overlap law.
      hyper: numbers, may be traced.
      padded: how many training examples there are.

    Returns:
      TestDraws, with the test set of `signal_noise.sample_test` with the same key.

    References:
      arXiv 2410.04870, data model.
    """
    shape = (2 * problem.rows + 1, problem.n_test, problem.patches)
    standard = jax.random.normal(jax.random.fold_in(key, 1), shape)
    return TestDraws(signal_noise.sample_test(key, problem, hyper, padded), standard)


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
    signal_key, noise_key = jax.random.split(key)
    signal = jax.random.normal(signal_key, (2 * rows + 1,))
    # Each example has its own key, so that its draws do not depend on the number of examples.
    keys = signal_noise.example_keys(noise_key, count)
    noise = jax.vmap(lambda k: jax.random.normal(k, (2 * rows + 1, patches)))(keys)
    noise = jnp.moveaxis(noise, 0, 1) * norm[None]
    sigma, kept = jnp.asarray(hyper.sigma_0, norm.dtype), jnp.ones((), norm.dtype)
    value = sigma * (2 / problem.m_v) ** 0.5
    return FeatureParams(
        Inner(sigma * signal[:rows], sigma * noise[:rows], kept),
        Inner(sigma * signal[rows:-1], sigma * noise[rows:-1], kept),
        Inner(value * signal[-1], value * noise[-1], kept),
        heads=problem.heads,
    )


def to_features(
    data: Examples, test: TestDraws, params: FeatureParams, problem: Problem, hyper: Hyper, degree: Array
) -> tuple[FeatureData, FeatureTest, FeatureParams]:
    """The training and test set of feature space, for an optimizer of degree p.

        <w,xi'>_0 | <w,xi>_0 ~ N(sum_i (<xi',xi_i>/||xi_i||^2) <w,xi_i>_0,
                                 sigma_0^2 (||xi'||^2 - sum_i <xi',xi_i>^2/||xi_i||^2))

    Each test patch has this distribution given the training patches. Two test patches that share coordinates off the
    training supports are drawn independently, which changes no expectation of a mean over the test set.

    Args:
      data: Examples.
      test: TestDraws.
      params: initial features of the training patches.
      problem: shapes.
      hyper: sigma_0, may be traced.
      degree: p, (); may be traced.

    Returns:
      (FeatureData, FeatureTest, FeatureParams).
    """
    drawn = test.drawn
    training = feature_data(data, drawn.alpha, problem.m_v, degree)
    square = jnp.sum(drawn.values * drawn.values, axis=2)  # (n_test, context-1)
    mixing: Any = None
    conditional: Any = None
    if problem.overlap == "exact":
        noise = data.noise.reshape(-1, problem.s)
        # Supports are disjoint and coordinates are exchangeable, so that the training patches may use the first ones in
        # order.
        coordinate = drawn.indices.reshape(-1, problem.s) - 1
        owner = jnp.minimum(coordinate // problem.s, noise.shape[0] - 1)
        value = jnp.where(coordinate < noise.size, noise[owner, coordinate % problem.s], 0)
        mixing = mixing_matrix(drawn, owner, value, training.metric, degree)
        norms = jnp.sum(noise * noise, axis=1)
        conditional = mixing_matrix(drawn, owner, value, norms, jnp.ones((), norms.dtype))
        square = square - jnp.sum(conditional * conditional * norms[:, None], axis=0).reshape(square.shape)
    spread = jnp.sqrt(jnp.maximum(square, 0)) * hyper.sigma_0
    rows = problem.rows

    def rest(standard: Array, inner: Inner, factor: float = 1.0) -> Array:
        fresh = standard * (factor * spread).reshape((1,) * (standard.ndim - 2) + spread.shape)
        if mixing is None:
            return fresh
        flat = inner.noise.reshape(*inner.noise.shape[:-2], -1)
        return fresh + jnp.matmul(flat, conditional - mixing, precision=HIGHEST).reshape(fresh.shape)

    z = test.standard
    tests = FeatureTest(
        rest(z[:rows], params.w_q), rest(z[rows:-1], params.w_k), rest(z[-1], params.w_v, (2 / problem.m_v) ** 0.5),
        mixing, drawn.y, drawn.mu, drawn.alpha,
    )  # fmt: skip
    return training, tests, params
