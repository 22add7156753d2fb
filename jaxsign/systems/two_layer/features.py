"""How does the two-layer transformer look in feature space, where parameters are inner products with the patches?"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer.data import TestSet, TrainingSet
from jaxsign.systems.two_layer.model import HIGHEST, AnyWeights, Features
from jaxsign.validation.values import field_names

Array = jax.Array


class Inner(NamedTuple):
    """Inner products of one weight matrix with the patches."""

    signal: Array  # (rows,) <w, e_1>; () for the value vector
    noise: Array  # (rows, n, context-1) <w, xi> without coordinate 0; (n, context-1) for the value vector
    kept: Array  # () the factor by which weight decay has shrunk the initial weights: a parameter with gradient 0


@dataclasses.dataclass(frozen=True)
class FeatureParams:
    """Inner products of the weights with the patches; when supports are disjoint, training moves nothing else.

    Args:
      w_q: query features.
      w_k: key features.
      w_v: features of the value vector v = mean_r w_{V,+1,r} - mean_r w_{V,-1,r}.
      heads: static number of heads.

    References:
      Derived here from the model of arXiv 2410.04870.
    """

    w_q: Inner
    w_k: Inner
    w_v: Inner
    heads: int = 1

    def features(self, data: "FeatureData") -> Features:
        """Features of the training examples: the parameters themselves, and the feature noise along e_1."""
        shift = (data.alpha * data.mu * data.y_clean)[:, None]
        (q_mu, q, _), (k_mu, k, _), (v_mu, v, _) = self.w_q, self.w_k, self.w_v
        rows = (slice(None), None, None)
        return Features(q_mu, k_mu, v_mu, q - q_mu[rows] * shift[None], k - k_mu[rows] * shift[None], v - v_mu * shift)

    def fresh_features(self, test: "FeatureTest") -> Features:
        """Features of fresh examples: their decayed start, and the motion of the training patches that they overlap."""
        shift = (test.alpha * test.mu * test.y)[:, None]

        def moved(inner: Inner, rest: Array) -> Array:
            noise = inner.kept * rest
            if test.mixing is not None:
                flat = inner.noise.reshape(*inner.noise.shape[:-2], -1)
                noise = noise + jnp.matmul(flat, test.mixing.T, precision=HIGHEST).reshape(noise.shape)
            signal = inner.signal.reshape((*inner.signal.shape, 1, 1))
            return noise - signal * shift.reshape((1,) * (noise.ndim - 2) + shift.shape)

        return Features(
            self.w_q.signal, self.w_k.signal, self.w_v.signal,
            moved(self.w_q, test.rest_q), moved(self.w_k, test.rest_k), moved(self.w_v, test.rest_v),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FeatureData:
    """A training set in feature space: no array of size d.

    Args:
      y: (n,) observed labels.
      y_clean: (n,) labels that the signal patches carry.
      signal_slot: (n,) int32.
      mu: (), norm of the signal patch.
      alpha: (), feature noise.
      metric: (n, context-1), sum_j |xi_j|^(1+p): the change of <w, xi> by one unit of update.
      value_metric: (), 2/m_v^p: the change of the value vector by one unit of update.
      weight: (n,), share of each example in the mean loss; 0 for padding.
    """

    y: Array
    y_clean: Array
    signal_slot: Array
    mu: Array
    alpha: Array
    metric: Array
    value_metric: Array
    weight: Array

    def scale(self, heads: int) -> FeatureParams:
        """The metric of every parameter, with 1 for the products with e_1."""
        one = jnp.ones((), self.metric.dtype)
        rows = Inner(one[None], self.metric[None], one)
        return FeatureParams(rows, rows, Inner(self.value_metric, self.value_metric * self.metric, one), heads)


@dataclasses.dataclass(frozen=True)
class FeatureTest:
    """A test set in feature space: no array of size d.

        <w, xi'>_t = kept_t rest + sum_i C_ji <w, xi_i>_t,   rest = <w, xi'>_0 - sum_i C_ji <w, xi_i>_0

    Args:
      rest_q: (rows, n_test, context-1).
      rest_k: (rows, n_test, context-1).
      rest_v: (n_test, context-1).
      mixing: (n_test*(context-1), n*(context-1)), C_ji = sum_c xi'_jc sgn(xi_ic)|xi_ic|^p / sum_c |xi_ic|^(1+p); None
        if no coordinate is shared.
      y: (n_test,) labels.
      mu: ().
      alpha: ().
    """

    __test__ = False  # not a pytest class

    rest_q: Array
    rest_k: Array
    rest_v: Array
    mixing: Array | None
    y: Array
    mu: Array
    alpha: Array


for _record in (FeatureData, FeatureTest):
    jax.tree_util.register_dataclass(_record, data_fields=field_names(_record), meta_fields=[])
jax.tree_util.register_dataclass(FeatureParams, data_fields=["w_q", "w_k", "w_v"], meta_fields=["heads"])


def to_features(
    data: TrainingSet, test: TestSet, params: AnyWeights, degree: Array, shared: bool
) -> tuple[FeatureData, FeatureTest, FeatureParams]:
    """Maps dense draws to feature space, for an optimizer of degree p.

    Args:
      data: training set with disjoint supports.
      test: test set with coordinates.
      params: initial weights.
      degree: p, (); may be traced.
      shared: whether test patches may share coordinates with training patches.

    Returns:
      (FeatureData, FeatureTest, FeatureParams) of the same run.
    """
    dense, alpha = params.features(data), test.alpha
    kept = jnp.ones((), alpha.dtype)
    shift = jnp.where(data.weight > 0, alpha * data.mu * data.y_clean, 0)[:, None]

    def along(noise: Array, signal: Array, shift: Array) -> Array:
        """The part of <w, xi> off coordinate 0."""
        return noise + signal.reshape((*signal.shape, 1, 1)) * shift.reshape((1,) * signal.ndim + shift.shape)

    features = FeatureParams(
        Inner(dense.q_mu, along(dense.q, dense.q_mu, shift), kept),
        Inner(dense.k_mu, along(dense.k, dense.k_mu, shift), kept),
        Inner(dense.v_mu, along(dense.v, dense.v_mu, shift), kept),
        heads=params.heads,
    )
    training = feature_data(data, alpha, params.full().w_v.shape[1], degree)
    fresh = params.fresh_features(dataclasses.replace(test, alpha=jnp.zeros_like(alpha)))
    mixing = mixing_matrix(test, *_owners(data, test), training.metric, degree) if shared else None

    def rest(fresh: Array, inner: Inner) -> Array:
        if mixing is None:
            return fresh
        flat = inner.noise.reshape(*inner.noise.shape[:-2], -1)
        return fresh - jnp.matmul(flat, mixing.T, precision=HIGHEST).reshape(fresh.shape)

    tests = FeatureTest(
        rest(fresh.q, features.w_q), rest(fresh.k, features.w_k), rest(fresh.v, features.w_v),
        mixing, test.y, test.mu, alpha,
    )  # fmt: skip
    return training, tests, features


def feature_data(data: Any, alpha: Array, m_v: int, degree: Array) -> FeatureData:
    """A training set in feature space, for an optimizer of degree p.

    Args:
      data: a record with noise (n, context-1, s), y, y_clean, signal_slot, mu and weight.
      alpha: feature noise, ().
      m_v: value rows of a sign.
      degree: p, (); may be traced.

    Returns:
      FeatureData.
    """
    metric = jnp.sum(jnp.abs(data.noise) ** (1 + degree), axis=2)
    value_metric = 2 * jnp.asarray(m_v, metric.dtype) ** -degree
    return FeatureData(
        data.y, data.y_clean, data.signal_slot, data.mu, alpha, metric, value_metric, data.weight
    )  # fmt: skip


def mixing_matrix(test: Any, owner: Array, value: Array, metric: Array, degree: Array) -> Array:
    """C of `FeatureTest`: with disjoint supports at most one training patch owns a coordinate.

    Args:
      test: a record with values (n_test, context-1, s).
      owner: (n_test*(context-1), s) int32, the training patch that owns each coordinate of each test patch.
      value: (n_test*(context-1), s), the value of that patch there; 0 where no patch owns the coordinate.
      metric: (n, context-1).
      degree: p, ().

    Returns:
      (n_test*(context-1), n*(context-1)).
    """
    flat = metric.reshape(-1)
    weight = test.values.reshape(owner.shape) * jnp.sign(value) * jnp.abs(value) ** degree
    weight = jnp.where(value == 0, 0, weight / flat[owner])  # padding has metric 0, and owns nothing
    row = jnp.broadcast_to(jnp.arange(owner.shape[0], dtype=jnp.int32)[:, None], owner.shape)
    return jnp.zeros((owner.shape[0], flat.size), weight.dtype).at[row, owner].add(weight)


def _owners(data: TrainingSet, test: TestSet) -> tuple[Array, Array]:
    """(owner, value) of `mixing_matrix`, looked up through arrays of d coordinates."""
    n, patches, s = data.support.shape
    d, where = data.basis.shape[1], data.support.reshape(-1)
    owner = jnp.zeros((d,), jnp.int32).at[where].set(jnp.repeat(jnp.arange(n * patches, dtype=jnp.int32), s))
    value = jnp.zeros((d,), data.basis.dtype).at[where].set(data.noise.reshape(-1))
    shared = test.indices.reshape(-1, s)
    return owner[shared], value[shared]  # padding owns coordinate 0 only, which no test patch uses
