"""How does the two-layer transformer compute its output? From one example, or from its weights' features of patches."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems import attention as kernels
from jaxsign.systems.two_layer.data import TestSet, TrainingSet
from jaxsign.systems.two_layer.problem import Hyper, Problem
from jaxsign.validation.values import field_names

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST
#: The constant of the attention kernel; at 1/2 the scores have no factor 1/sqrt(m_k).
CONSTANT = 0.5
#: The support engine trains a multiple of this many coordinates: a product of 20 rows with 801 columns takes a third
#: longer than with 832 (AVX-512).
COLUMNS = 64


class Features(NamedTuple):
    """Inner products of the weights with e_1 and with the noise patches of the examples."""

    q_mu: Array  # (rows,) <w_Q, e_1>
    k_mu: Array  # (rows,) <w_K, e_1>
    v_mu: Array  # () <v, e_1>
    q: Array  # (rows, n, context-1) <w_Q, xi>
    k: Array  # (rows, n, context-1) <w_K, xi>
    v: Array  # (n, context-1) <v, xi>


class Weights:
    """Weights in any form. A form defines W_Q, W_K and V on its columns; their products with patches follow."""

    heads: int

    def query(self) -> Array:
        """W_Q on this form's columns."""
        raise NotImplementedError

    def key(self) -> Array:
        """W_K on this form's columns."""
        raise NotImplementedError

    def value(self) -> Array:
        """V = mean_r w_{V,+1,r} - mean_r w_{V,-1,r} on this form's columns: the model depends on W_V only through V."""
        raise NotImplementedError

    def full(self) -> "Params":
        """These weights with every coordinate and value row."""
        raise NotImplementedError

    def columns(self, basis: Array) -> Array:
        """The columns of the patches that these weights multiply: all."""
        return basis

    def features(self, data: TrainingSet) -> Features:
        """Features of the training examples: one product of each weight matrix with the patches.

        Args:
          data: the training set.

        Returns:
          Features, linear in each weight matrix.
        """
        count, patches = data.support.shape[:2]
        basis = self.columns(data.basis)
        query = jnp.matmul(self.query(), basis.T, precision=HIGHEST)
        key = jnp.matmul(self.key(), basis.T, precision=HIGHEST)
        value = jnp.matmul(basis, self.value(), precision=HIGHEST)
        grid = (-1, count, patches)
        return Features(
            query[:, 0], key[:, 0], value[0],
            query[:, 1:].reshape(grid), key[:, 1:].reshape(grid), value[1:].reshape(grid[1:]),
        )  # fmt: skip

    def fresh_features(self, test: TestSet) -> Features:
        """Features of sparse test examples, gathered: no (n_test, d) array.

        Args:
          test: TestSet with coordinates, see `jaxsign.systems.two_layer.data.assign_coordinates`.

        Returns:
          Features with n_test examples.
        """
        full = self.full()
        rows = full.w_q.shape[0]
        count, patches, s = test.indices.shape
        # The transposed weights have the 2*rows+1 numbers of a coordinate in one row, so that one gather serves all
        # three products.
        weights = jnp.concatenate([full.w_q, full.w_k, full.value()[None]]).T
        indices, values = (jnp.moveaxis(a, 2, 0) for a in (test.indices, test.values))

        def add(i: Array, total: Array) -> Array:
            return total + weights[indices[i]] * values[i][:, :, None]

        none = jnp.zeros((count, patches, weights.shape[1]), weights.dtype)
        inner = jax.lax.fori_loop(0, s, add, none, unroll=min(s, 4))
        shift = (test.alpha * test.mu * test.y)[:, None, None]  # feature noise, along e_1
        inner = jnp.moveaxis(inner - shift * weights[0][None, None], 2, 0)
        return Features(full.w_q[:, 0], full.w_k[:, 0], weights[0, -1], inner[:rows], inner[rows:-1], inner[-1])


class _Plain(Weights):
    """Weights that hold W_Q and W_K as they are."""

    w_q: Array
    w_k: Array

    def query(self) -> Array:
        """W_Q."""
        return self.w_q

    def key(self) -> Array:
        """W_K."""
        return self.w_k


@dataclasses.dataclass(frozen=True)
class Params(_Plain):
    """Weights of the two-layer transformer.

    Args:
      w_q: (heads*m_k, d) query weights.
      w_k: (heads*m_k, d) key weights.
      w_v: (2, m_v, d) value weights; w_v[0] is j=+1, w_v[1] is j=-1.
      heads: static number of heads.

    References:
      arXiv 2410.04870, model definition.
    """

    w_q: Array
    w_k: Array
    w_v: Array
    heads: int = 1

    def value(self) -> Array:
        """V = mean_r w_{V,+1,r} - mean_r w_{V,-1,r}, (d,): the model depends on W_V only through V."""
        mean = jnp.mean(self.w_v, axis=1)
        return mean[0] - mean[1]

    def full(self) -> "Params":
        """These weights themselves."""
        return self


@dataclasses.dataclass(frozen=True)
class TiedParams(_Plain):
    """The same weights with one shared displacement for the value rows of each sign.

    All m_v rows of one sign have the same gradient, (dL/dv) sgn(j)/m_v, so an optimizer that is coordinate-wise and
    reads gradients only moves them alike: it is enough to train their common displacement.

    Args:
      w_q: (heads*m_k, d).
      w_k: (heads*m_k, d).
      w_v: (2, d) displacement of every value row of a sign from its start; its gradient is that of a single row.
      v_start: (d,) the value vector at the start; frozen.
      w_v_start: (2, m_v, d) value rows at the start; frozen.
      heads: static number of heads.
    """

    w_q: Array
    w_k: Array
    w_v: Array
    v_start: Array
    w_v_start: Array
    heads: int = 1

    def value(self) -> Array:
        """V = v_start + w_v[0] - w_v[1], with the gradient of a single row, (dL/dv) sgn(j)/m_v."""
        return self.v_start + _row_gradient(self.w_v[0] - self.w_v[1], self.w_v_start.shape[1])

    def full(self) -> Params:
        """The full weights, each value row moved by its sign's displacement."""
        return Params(self.w_q, self.w_k, self.w_v_start + self.w_v[:, None], heads=self.heads)


class Active(NamedTuple):
    """One matrix on the active coordinates."""

    moved: Array  # (rows, active); of W_V (2, active), the displacement of every row of a sign from its start
    kept: Array  # () the factor by which weight decay has shrunk all other weights: a parameter with gradient 0


@dataclasses.dataclass(frozen=True)
class ActiveParams(Weights):
    """The same weights on the coordinates that some training patch uses, value rows tied.

        W = kept * start off the active coordinates,   value row = kept * start + displacement

    Every other coordinate has gradient 0 at every step. An optimizer that moves each coordinate by its own gradients
    only leaves it where it started, and decoupled weight decay shrinks all of them by the same factor.

    Args:
      w_q: Active, (heads*m_k, active).
      w_k: Active, (heads*m_k, active).
      w_v: Active, (2, active); its gradient is that of a single row.
      v_start: (active,) the value vector at the start; frozen.
      active: (active,) int32, the coordinates; frozen.
      start: the full Params at the start; frozen.
      heads: static number of heads.
    """

    w_q: Active
    w_k: Active
    w_v: Active
    v_start: Array
    active: Array
    start: Params
    heads: int = 1

    def query(self) -> Array:
        """W_Q on the active coordinates."""
        return self.w_q.moved

    def key(self) -> Array:
        """W_K on the active coordinates."""
        return self.w_k.moved

    def value(self) -> Array:
        """V on the active coordinates, with the gradient of a single row, (dL/dv) sgn(j)/m_v."""
        moved, kept = self.w_v
        start = jax.lax.stop_gradient(kept) * self.v_start
        return start + _row_gradient(moved[0] - moved[1], self.start.w_v.shape[1])

    def columns(self, basis: Array) -> Array:
        """The active columns of the patches."""
        # XLA would lay basis[:, active] out with the patches last and copy it back at every step.
        return jnp.take_along_axis(basis, jnp.broadcast_to(self.active, (basis.shape[0], self.active.size)), axis=1)

    def full(self) -> Params:
        """The full weights: the decayed start, with the active coordinates replaced."""
        (q, kept_q), (k, kept_k), (v, kept_v) = self.w_q, self.w_k, self.w_v
        w_q = (kept_q * self.start.w_q).at[:, self.active].set(q)
        w_k = (kept_k * self.start.w_k).at[:, self.active].set(k)
        w_v = (kept_v * self.start.w_v).at[:, :, self.active].add(v[:, None])
        return Params(w_q, w_k, w_v, heads=self.heads)


@dataclasses.dataclass(frozen=True)
class SeenParams:
    """Weights reduced to their features of one training set.

    Args:
      seen: Features of the training set.
      heads: static number of heads.
    """

    seen: Features
    heads: int = 1

    def features(self, data: TrainingSet) -> Features:
        """The features, which are stored."""
        del data
        return self.seen


def seen(params: "AnyWeights", data: TrainingSet) -> SeenParams:
    """Weights reduced to their features of a training set, which determine all observables without a test set."""
    return SeenParams(params.features(data), heads=params.heads)


AnyWeights = Params | TiedParams | ActiveParams


def _row_gradient(moved: Array, rows: int) -> Array:
    """`moved` itself, with the gradient of one of `rows` equal rows: 1/rows of the gradient of their mean."""
    still = jax.lax.stop_gradient(moved)
    return still + (moved - still) / rows


for _record in (Params, TiedParams, ActiveParams, SeenParams):
    jax.tree_util.register_dataclass(
        _record, data_fields=[name for name in field_names(_record) if name != "heads"], meta_fields=["heads"]
    )


def init(key: Array, problem: Problem, hyper: Hyper) -> Params:
    """Draws every weight i.i.d. N(0, sigma_0^2).

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: sigma_0, may be traced.

    Returns:
      Params.

    Examples:
      >>> import jax
      >>> init(jax.random.key(0), Problem(n=2, d=9, s=2, m_k=3, m_v=4), Hyper(sigma_p=2.0)).w_v.shape
      (2, 4, 9)

    References:
      arXiv 2410.04870, initialisation.
    """
    shapes = ((problem.rows, problem.d), (problem.rows, problem.d), (2, problem.m_v, problem.d))
    w_q, w_k, w_v = (hyper.sigma_0 * jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key, 3), shapes))
    return Params(w_q, w_k, w_v, heads=problem.heads)


def tie(params: Params) -> TiedParams:
    """Params -> TiedParams at the same function."""
    start = params.w_v
    return TiedParams(
        params.w_q, params.w_k, jnp.zeros_like(start[:, 0]), params.value(), start, heads=params.heads
    )  # fmt: skip


def activate(params: Params, data: TrainingSet) -> ActiveParams:
    """Params -> ActiveParams at the same function on the training patches.

    Args:
      params: Params.
      data: the training set; at most n*(context-1)*s + 1 of its coordinates are in use.

    Returns:
      ActiveParams with that many coordinates, rounded up to a multiple of COLUMNS and at most d; unused coordinates
      fill the rest.
    """
    d = data.basis.shape[1]
    count = min(-(-(data.support.size + 1) // COLUMNS) * COLUMNS, d)
    used = jnp.zeros((d,), bool).at[0].set(True).at[data.support.reshape(-1)].set(True)
    active = jnp.argsort(~used, stable=True)[:count].astype(jnp.int32)
    kept = jnp.ones((), params.w_q.dtype)
    return ActiveParams(
        Active(params.w_q[:, active], kept), Active(params.w_k[:, active], kept),
        Active(jnp.zeros_like(params.w_v[:, 0, :count]), kept),
        params.value()[active], active, params, heads=params.heads,
    )  # fmt: skip


def scores(features: Features, sign_mu: Array, heads: int) -> Array:
    """Attention scores of every example, z_la = <W_Q x_l, W_K x_a> per head; token 0 is the signal.

    The example axis is last and stays in place, so that every sum over a head's rows runs over contiguous examples.
    These sums are too small for matrix products to be faster.

    Args:
      features: Features of n examples.
      sign_mu: (n,), y_clean * mu: the signal patches are sign_mu * e_1.
      heads: number of heads h; rows = h*m_k.

    Returns:
      (context, context, heads, n), query token first.
    """
    n, patches = features.v.shape
    split = (heads, -1, n, patches)
    q_mu, k_mu = features.q_mu.reshape(heads, -1, 1), features.k_mu.reshape(heads, -1, 1)
    q, k = (jnp.moveaxis(noise.reshape(split), 3, 0) for noise in (features.q, features.k))  # (patch, head, row, n)
    sign = sign_mu[None, None]
    signal_signal = sign[0] * sign[0] * jnp.sum(q_mu * k_mu, 1)
    signal_noise = sign * jnp.sum(q_mu[None] * k, 2)
    noise_signal = sign * jnp.sum(q * k_mu[None], 2)
    noise_noise = jnp.sum(q[:, None] * k[None], 3)
    first = jnp.concatenate([signal_signal[None], signal_noise])
    rest = jnp.concatenate([noise_signal[:, None], noise_noise], 1)
    return jnp.concatenate([first[None], rest])


def squares(noise: Array, signal: Array, sign_mu: Array, heads: int) -> Array:
    """|w x_l|^2 of every token and head, (context, heads, n), from the noise and signal features of one matrix."""
    n, patches = noise.shape[1:]
    of_noise = jnp.moveaxis(jnp.sum(noise.reshape(heads, -1, n, patches) ** 2, 1), 2, 0)
    of_signal = sign_mu[None] ** 2 * jnp.sum(signal.reshape(heads, -1) ** 2, 1)[:, None]
    return jnp.concatenate([of_signal[None], of_noise])


def _inner(features: Features, sign_mu: Array, heads: int, kernel: str) -> tuple[Array, Array | None, Array | None]:
    """Inner products of queries with keys, and the squares of both where the kernel reads them."""
    products = scores(features, sign_mu, heads)
    if kernel != "gaussian":
        return products, None, None
    query_squares = squares(features.q, features.q_mu, sign_mu, heads)
    return products, query_squares, squares(features.k, features.k_mu, sign_mu, heads)


def logits(
    features: Features, sign_mu: Array, heads: int, kernel: str = "softmax", residual: Array | float = 0.0
) -> Array:
    """Output F of every example from its features.

        F = sum_a (r + sum_heads sum_l s_la) <v, x_a>

    Args:
      features: Features of n examples.
      sign_mu: (n,), y_clean * mu.
      heads: number of heads.
      kernel: of the attention.
      residual: r, ().

    Returns:
      (n,).

    References:
      arXiv 2410.04870, model definition; r = 0 there.
    """
    attention = kernels.attention(kernel, *_inner(features, sign_mu, heads, kernel), CONSTANT, axis=-3)
    values = jnp.concatenate([(sign_mu * features.v_mu)[None], features.v.T])
    return jnp.sum((jnp.sum(attention, (0, 2)) + residual) * values, 0)


def log_attention(features: Features, sign_mu: Array, heads: int, kernel: str = "softmax") -> Array:
    """Logarithm of the attention of every example, (context, context, heads, n), query token first."""
    return kernels.log_attention(kernel, *_inner(features, sign_mu, heads, kernel), CONSTANT, axis=-3)


def apply(params: Params, x: Array, kernel: str = "softmax", residual: Array | float = 0.0) -> Array:
    """Output F(W, X) of ONE example, any patches in any slots.

        F = F_1 - F_{-1},   F_j = (1/m_v) sum_l 1^T W_{V,j} (X softmax(X^T W_K^T W_Q x^(l)) + r x^(l))

    Args:
      params: Params.
      x: (context, d), one patch a row.
      kernel: of the attention, `Problem.kernel`.
      residual: r, `Hyper.residual`.

    Returns:
      (), the logit: its sign is the predicted label.

    Raises:
      ValueError: for a batch, or an unknown kernel.

    Examples:
      >>> import jax
      >>> params = init(jax.random.key(0), Problem(n=2, d=9, s=2, m_k=3, m_v=4), Hyper(sigma_p=2.0))
      >>> apply(params, jnp.ones((2, 9))).shape
      ()

    References:
      arXiv 2410.04870, model definition; r = 0 there.
    """
    if x.ndim != 2:
        raise ValueError(f"x must be ONE example (context, d), got shape {x.shape}; use jax.vmap for a batch")
    context = x.shape[0]
    query, key = (
        jnp.moveaxis(jnp.matmul(w, x.T, precision=HIGHEST).reshape(params.heads, -1, context), 1, 2)
        for w in (params.w_q, params.w_k)
    )
    attention = kernels.kernel(kernel)(query, key, CONSTANT)
    return jnp.sum((jnp.sum(attention, (0, 1)) + residual) * jnp.matmul(x, params.value(), precision=HIGHEST))


def logistic_loss(margin: Array) -> Array:
    """log(1 + exp(-margin)), elementwise and stable at both ends."""
    return jax.nn.softplus(-margin)
