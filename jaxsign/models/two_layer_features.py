"""The two-layer transformer in feature space: its parameters are the inner products with the patches."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.data.signal_noise import Dataset, TestSet
from jaxsign.models.two_layer import HIGHEST, AnyWeights, Features
from jaxsign.problem import field_names

Array = jax.Array


class Inner(NamedTuple):
    """Inner products of one weight matrix with the patches."""

    signal: Array  # (rows,) <w, e_1>; () for the value vector
    noise: Array  # (rows, n, context-1) <w, xi> without coordinate 0; (n, context-1) for the value vector
    kept: Array  # () what weight decay has left of the initial weights: a coordinate of its own, with gradient 0


@dataclasses.dataclass(frozen=True)
class FeatureParams:
    """Weights seen through the patches alone, which is all that moves when supports are disjoint.

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
        """Features of fresh examples: what decay has left of their start, and what overlaps have moved."""
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
    """What feature space keeps of a training set: nothing of size d.

    Args:
      y: (n,) observed labels.
      y_clean: (n,) labels that the signal patches carry.
      signal_slot: (n,) int32.
      mu: (), norm of the signal patch.
      alpha: (), feature noise.
      metric: (n, context-1), sum_j |xi_j|^(1+p): how far one unit of update moves <w, xi>.
      value_metric: (), 2/m_v^p: how far it moves the value vector.
    """

    y: Array
    y_clean: Array
    signal_slot: Array
    mu: Array
    alpha: Array
    metric: Array
    value_metric: Array

    def scale(self, heads: int) -> FeatureParams:
        """The metric of every parameter; that of e_1 is 1."""
        one = jnp.ones((), self.metric.dtype)
        rows = Inner(one[None], self.metric[None], one)
        return FeatureParams(rows, rows, Inner(self.value_metric, self.value_metric * self.metric, one), heads)


@dataclasses.dataclass(frozen=True)
class FeatureTest:
    """What feature space keeps of a test set.

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
    data: Dataset, test: TestSet, params: AnyWeights, degree: Array, shared: bool
) -> tuple[FeatureData, FeatureTest, FeatureParams]:
    """Maps dense draws to feature space, for a transform of degree p.

    Args:
      data: training set with disjoint supports.
      test: settled test set.
      params: initial weights.
      degree: p, (); may be traced.
      shared: whether test patches may share coordinates with training patches.

    Returns:
      (FeatureData, FeatureTest, FeatureParams) of the same run.
    """
    values = jnp.take_along_axis(data.patches, data.support, axis=2)
    metric = jnp.sum(jnp.abs(values) ** (1 + degree), axis=2)
    found, alpha = params.features(data), test.alpha
    kept = jnp.ones((), metric.dtype)
    shift = (alpha * data.mu * data.y_clean)[:, None]

    def along(noise: Array, signal: Array, shift: Array) -> Array:
        """The part of <w, xi> off coordinate 0."""
        return noise + signal.reshape((*signal.shape, 1, 1)) * shift.reshape((1,) * signal.ndim + shift.shape)

    features = FeatureParams(
        Inner(found.q_mu, along(found.q, found.q_mu, shift), kept),
        Inner(found.k_mu, along(found.k, found.k_mu, shift), kept),
        Inner(found.v_mu, along(found.v, found.v_mu, shift), kept),
        heads=params.heads,
    )
    fresh = params.fresh_features(dataclasses.replace(test, alpha=jnp.zeros_like(alpha)))
    mixing = _mixing(data, values, metric, test, degree) if shared else None

    def rest(fresh: Array, inner: Inner) -> Array:
        if mixing is None:
            return fresh
        flat = inner.noise.reshape(*inner.noise.shape[:-2], -1)
        return fresh - jnp.matmul(flat, mixing.T, precision=HIGHEST).reshape(fresh.shape)

    value_metric = 2 * jnp.asarray(params.full().w_v.shape[1], metric.dtype) ** -degree
    return (
        FeatureData(data.y, data.y_clean, data.signal_slot, data.mu, alpha, metric, value_metric),
        FeatureTest(
            rest(fresh.q, features.w_q), rest(fresh.k, features.w_k), rest(fresh.v, features.w_v),
            mixing, test.y, test.mu, alpha,
        ),
        features,
    )  # fmt: skip


def _mixing(data: Dataset, values: Array, metric: Array, test: TestSet, degree: Array) -> Array:
    """C of `FeatureTest`: disjoint supports give every coordinate at most one owner."""
    n, patches, s = data.support.shape
    d, count = data.basis.shape[1], test.indices.shape[0] * patches
    where = data.support.reshape(-1)
    owner = jnp.zeros((d,), jnp.int32).at[where].set(jnp.repeat(jnp.arange(n * patches, dtype=jnp.int32), s))
    value = jnp.zeros((d,), values.dtype).at[where].set(values.reshape(-1))
    shared = test.indices.reshape(count, s)
    own, x = owner[shared], value[shared]  # an unowned coordinate has value 0 and weighs nothing
    weight = test.values.reshape(count, s) * jnp.sign(x) * jnp.abs(x) ** degree / metric.reshape(-1)[own]
    row = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[:, None], own.shape)
    return jnp.zeros((count, n * patches), values.dtype).at[row, own].add(weight)
