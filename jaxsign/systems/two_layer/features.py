"""How does the two-layer transformer look in feature space, where parameters are inner products with the patches?"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer.data import TestSet, TrainingSet
from jaxsign.systems.two_layer.model import HIGHEST, Active, ActiveParams, AnyWeights, Features, TiedParams
from jaxsign.systems.two_layer.overlaps import shared_coordinates
from jaxsign.validation.values import field_names

Array = jax.Array


class Inner(NamedTuple):
    """Inner products of one weight matrix with the patches, coordinates of several patches aside."""

    signal: Array  # (rows,) <w, e_1>; () for the value vector
    noise: Array  # (rows, n, context-1) <w, xi> on the patch's own coordinates; (n, context-1) for the value vector
    kept: Array  # () the factor by which weight decay has shrunk the initial weights: a parameter with gradient 0
    shared: Array | None = None  # (rows, S) weights on the coordinates of several patches; (S,) for the value vector


@dataclasses.dataclass(frozen=True)
class FeatureParams:
    """Inner products of the weights with the patches on each patch's own coordinates, and the weights on shared ones.

        <w, xi_i> = noise_i + sum_(c shared) xi_ic w_c      (coordinate 0 aside)

    Training moves nothing else. With disjoint supports no coordinate is shared, and `shared` is None.

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
        """Features of the training examples: their inner products, and the feature noise along e_1."""
        shift = (data.alpha * data.mu * data.y_clean)[:, None]
        q_mu, k_mu, v_mu = self.w_q.signal, self.w_k.signal, self.w_v.signal
        q, k, v = self.noise(data)
        rows = (slice(None), None, None)
        return Features(q_mu, k_mu, v_mu, q - q_mu[rows] * shift[None], k - k_mu[rows] * shift[None], v - v_mu * shift)

    def noise(self, data: "FeatureData") -> tuple[Array, Array, Array]:
        """Inner products of queries, keys and values with the noise patches, coordinate 0 left out."""
        columns = data.shared

        def whole(inner: Inner) -> Array:
            if columns is None or inner.shared is None:
                return inner.noise
            return inner.noise + jnp.matmul(inner.shared, columns.T, precision=HIGHEST).reshape(inner.noise.shape)

        return whole(self.w_q), whole(self.w_k), whole(self.w_v)

    def fresh_features(self, test: "FeatureTest") -> Features:
        """Features of fresh examples: their decayed start, and the motion of the training patches that they overlap."""
        shift = (test.alpha * test.mu * test.y)[:, None]
        parts = self.w_q, self.w_k, self.w_v
        rest = test.rest_q, test.rest_k, test.rest_v
        noise = tuple(inner.kept * fixed for inner, fixed in zip(parts, rest))
        if test.mixing is not None:
            noise = jax.tree.map(jnp.add, noise, _products(list(map(moving, parts)), test.mixing, rest))

        def along(noise: Array, signal: Array) -> Array:
            return noise - signal.reshape((*signal.shape, 1, 1)) * shift.reshape((1,) * (noise.ndim - 2) + shift.shape)

        signals = tuple(inner.signal for inner in parts)
        return Features(*signals, *map(along, noise, signals))


def _products(matrices: Sequence[Array], columns: Array, like: Sequence[Array]) -> tuple[Array, ...]:
    """Every matrix (rows, C) or vector (C,) times columns, (C, patches), in the shapes of `like`: one product."""
    rows = [jnp.atleast_2d(matrix) for matrix in matrices]
    product = jnp.matmul(jnp.concatenate(rows), columns, precision=HIGHEST)
    ends = itertools.accumulate(len(each) for each in rows)
    return tuple(product[end - len(each) : end].reshape(x.shape) for end, each, x in zip(ends, rows, like))


@dataclasses.dataclass(frozen=True)
class FeatureData:
    """A training set in feature space: no array of size d.

    Args:
      y: (n,) observed labels.
      y_clean: (n,) labels that the signal patches carry.
      signal_slot: (n,) int32.
      mu: (), norm of the signal patch.
      alpha: (), feature noise.
      metric: (n, context-1), sum_j |xi_j|^(1+p) over the patch's own coordinates: the change of <w, xi> there by one
        unit of update.
      value_metric: (), 2/m_v^p: the change of the value vector by one unit of update.
      weight: (n,), share of each example in the mean loss; 0 for padding.
      shared: (n*(context-1), S), the noise patches on the coordinates that several of them use; None if there are none.
    """

    y: Array
    y_clean: Array
    signal_slot: Array
    mu: Array
    alpha: Array
    metric: Array
    value_metric: Array
    weight: Array
    shared: Array | None = None

    def scale(self, heads: int) -> FeatureParams:
        """The metric of every parameter, with 1 for the products with e_1 and for weights."""
        one, per_value, some = jnp.ones((), self.metric.dtype), self.value_metric, self.shared is not None
        rows = Inner(one[None], self.metric[None], one, one[None, None] if some else None)
        values = Inner(per_value, per_value * self.metric, one, per_value[None] if some else None)
        return FeatureParams(rows, rows, values, heads)


@dataclasses.dataclass(frozen=True)
class FeatureTest:
    """A test set in feature space: no array of size d.

        <w, xi'_j>_t = kept_t rest_j + sum_i C_ij noise_it + sum_(c shared) xi'_jc w_ct

    with rest_j = <w, xi'_j>_0 less both sums at t = 0, coordinate 0 aside.

    Args:
      rest_q: (rows, n_test, context-1).
      rest_k: (rows, n_test, context-1).
      rest_v: (n_test, context-1).
      mixing: (n*(context-1) + S, n_test*(context-1)), C_ij = sum_c xi'_jc sgn(xi_ic)|xi_ic|^p / sum_c |xi_ic|^(1+p)
        over the coordinates c of training patch i alone, and below it xi'_jc on the shared ones; None if test patches
        use no coordinate of a training patch.
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


def moving(inner: Inner) -> Array:
    """What training moves of a matrix, coordinate 0 left out: its features, then its weights on shared coordinates."""
    flat = inner.noise.reshape(*inner.noise.shape[:-2], -1)
    return flat if inner.shared is None else jnp.concatenate([flat, inner.shared], -1)


def to_features(
    data: TrainingSet, test: TestSet, params: AnyWeights, degree: Array, overlap: bool, slots: int = 0
) -> tuple[FeatureData, FeatureTest, FeatureParams]:
    """Maps dense draws to feature space, for an optimizer of degree p.

    Args:
      data: training set.
      test: test set with coordinates.
      params: initial weights.
      degree: p, (); may be traced.
      overlap: whether test patches may use coordinates of training patches.
      slots: S, at least the number of coordinates that several training patches use; 0 for disjoint supports.

    Returns:
      (FeatureData, FeatureTest, FeatureParams) of the same run. Parameters are NaN if S slots do not hold the shared
      coordinates, so that the run ends as diverged at step 0.
    """
    where = shared_coordinates(data, slots) if slots else None
    own = data if where is None else dataclasses.replace(data, basis=jnp.where(where.slot < slots, 0, data.basis))
    dense, alpha = params.features(own), test.alpha
    kept = jnp.ones((), alpha.dtype)
    shift = jnp.where(data.weight > 0, alpha * data.mu * data.y_clean, 0)[:, None]

    def inner(noise: Array, signal: Array, weights: Array) -> Inner:
        """Features and weights of a matrix, the features without coordinate 0."""
        noise = noise + signal.reshape((*signal.shape, 1, 1)) * shift.reshape((1,) * signal.ndim + shift.shape)
        if where is None:
            return Inner(signal, noise, kept)
        signal = jnp.where(where.fit, signal, jnp.nan)
        return Inner(signal, noise, kept, jnp.where(where.used, weights[..., where.coordinate], 0))

    features = FeatureParams(
        inner(dense.q, dense.q_mu, params.query()),
        inner(dense.k, dense.k_mu, params.key()),
        inner(dense.v, dense.v_mu, params.value()),
        heads=params.heads,
    )
    training = feature_data(own, alpha, params.full().w_v.shape[1], degree)
    if where is not None:
        columns = jnp.where(where.used, data.basis[1:, where.coordinate], 0)
        training = dataclasses.replace(training, shared=columns)
    fresh = params.fresh_features(dataclasses.replace(test, alpha=jnp.zeros_like(alpha)))
    mixing = None
    if overlap:
        mixing = mixing_matrix(test, *_owners(own, test), training.metric, degree)
        if where is not None:
            mixing = jnp.concatenate([mixing, _shared_values(test, where.slot, slots)])

    def rest(fresh: Array, inner: Inner) -> Array:
        if mixing is None:
            return fresh
        return fresh - jnp.matmul(moving(inner), mixing, precision=HIGHEST).reshape(fresh.shape)

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
    """C of `FeatureTest`: at most one training patch owns a coordinate.

    Args:
      test: a record with values (n_test, context-1, s).
      owner: (n_test*(context-1), s) int32, the training patch that owns each coordinate of each test patch.
      value: (n_test*(context-1), s), the value of that patch there; 0 where no patch owns the coordinate.
      metric: (n, context-1).
      degree: p, ().

    Returns:
      (n*(context-1), n_test*(context-1)): products along the last axis are the fastest.
    """
    flat = metric.reshape(-1)
    weight = test.values.reshape(owner.shape) * jnp.sign(value) * jnp.abs(value) ** degree
    weight = jnp.where(value == 0, 0, weight / flat[owner])  # padding has metric 0, and owns nothing
    fresh = jnp.broadcast_to(jnp.arange(owner.shape[0], dtype=jnp.int32)[:, None], owner.shape)
    return jnp.zeros((flat.size, owner.shape[0]), weight.dtype).at[owner, fresh].add(weight)


def _shared_values(test: TestSet, slot: Array, slots: int) -> Array:
    """Values of the test patches on the shared coordinates, (S, n_test*(context-1))."""
    values = test.values.reshape(-1, test.values.shape[-1])
    fresh = jnp.broadcast_to(jnp.arange(values.shape[0], dtype=jnp.int32)[:, None], values.shape)
    place = slot[test.indices.reshape(values.shape)]
    return jnp.zeros((slots, values.shape[0]), values.dtype).at[place, fresh].set(values, mode="drop")


def _owners(data: TrainingSet, test: TestSet) -> tuple[Array, Array]:
    """(owner, value) of `mixing_matrix`, looked up through arrays of d coordinates."""
    n, patches, s = data.support.shape
    d, where = data.basis.shape[1], data.support.reshape(-1)
    owner = jnp.zeros((d,), jnp.int32).at[where].set(jnp.repeat(jnp.arange(n * patches, dtype=jnp.int32), s))
    value = jnp.zeros((d,), data.basis.dtype).at[where].set(data.noise.reshape(-1))
    shared = test.indices.reshape(-1, s)
    return owner[shared], value[shared]  # padding owns coordinate 0 only, which no test patch uses


def weight_signs(
    weights: TiedParams | ActiveParams, data: TrainingSet, slots: int
) -> Callable[[FeatureParams], TiedParams | ActiveParams]:
    """Which way weights move where their features do, for an optimizer of degree 0: `signs of features -> of weights`.

        sgn(u(w_0)) = sgn(u(signal)),   sgn(u(w_j)) = sgn(xi_ij) sgn(u(noise_i))   j used by training patch i alone
        sgn(u(w_j)) = sgn(u(shared_k))   j shared, in slot k;   0 for all other coordinates

    Value rows of sign +1 move like the value vector, the others the opposite way.

    Args:
      weights: weights of the same run, for their columns.
      data: its training set.
      slots: S of the features.

    Returns:
      The function. It takes FeatureParams of int8 in {-1, 0, 1}, and returns `weights`
      with the signs of their updates in place of w_q, w_k and w_v.
    """
    basis = weights.columns(data.basis)
    own = jnp.concatenate([basis[:1], jnp.where(basis[:1] != 0, 0, basis[1:])])  # feature noise lies along e_1
    slot = jnp.full((own.shape[1],), slots, jnp.int32)
    if slots:
        slot = weights.columns(shared_coordinates(data, slots).slot[None])[0]
    shared = slot < slots
    own = jnp.where(shared, 0, own)  # now a coordinate has one patch at most
    # Of each coordinate its place among signal, noise and shared features, and the sign by which it follows it.
    place = jnp.where(shared, len(own) + slot, jnp.argmax(own != 0, axis=0).astype(jnp.int32))
    factor = jnp.where(shared, 1, jnp.sign(jnp.sum(own, 0))).astype(jnp.int8)

    def along(inner: Inner) -> Array:
        followed = jnp.concatenate([inner.signal[..., None], moving(inner)], -1)[..., place]
        return followed * jnp.broadcast_to(factor, followed.shape)

    def signs(moves: FeatureParams) -> TiedParams | ActiveParams:
        value = along(moves.w_v)
        moved: dict[str, Any] = {"w_q": along(moves.w_q), "w_k": along(moves.w_k), "w_v": jnp.stack([value, -value])}
        if isinstance(weights, ActiveParams):
            moved = {name: Active(matrix, jnp.zeros((), jnp.int8)) for name, matrix in moved.items()}
        return dataclasses.replace(weights, **moved)

    return signs
