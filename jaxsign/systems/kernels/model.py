"""Multi-head attention with a kernel, what W_V alone can fit of its targets, and its exact least-squares optimum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.attention import HIGHEST, attention, default_constant
from jaxsign.systems.kernels.data import Samples
from jaxsign.systems.kernels.problem import KernelHyper, KernelProblem

Array = jax.Array


class KernelParams(NamedTuple):
    """Weights of the attention layer.

    Args:
      w_q: (heads, embed, d) query weights.
      w_k: (heads, embed, d) key weights.
      w_v: (heads, embed, d) value weights.
      w_o: (heads, d, d_out) output weights, the rows of W^O that belong to each head.
    """

    w_q: Array
    w_k: Array
    w_v: Array
    w_o: Array


def init(key: Array, problem: KernelProblem, hyper: KernelHyper) -> KernelParams:
    """Draws W_Q, W_K ~ N(0, g^2), W_V ~ N(0, 1) and W^O ~ N(0, 1/(H d)), all i.i.d.

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: init_scale g, may be traced.

    Returns:
      KernelParams.

    Examples:
      >>> init(jax.random.key(0), KernelProblem(embed=6, d=2, heads=3), KernelHyper()).w_q.shape
      (3, 6, 2)

    References:
      arXiv 2411.07538, model; the initialisation is reconstructed.
    """
    shape = (problem.heads, problem.embed, problem.d)
    query, keys, value, output = jax.random.split(key, 4)
    return KernelParams(
        hyper.init_scale * jax.random.normal(query, shape),
        hyper.init_scale * jax.random.normal(keys, shape),
        jax.random.normal(value, shape),
        (problem.heads * problem.d) ** -0.5 * jax.random.normal(output, (problem.heads, problem.d, problem.d_out)),
    )


def constant(problem: KernelProblem, hyper: KernelHyper) -> Array | float:
    """The kernel constant c = c_scale / (2 sqrt(d))."""
    return hyper.c_scale * default_constant(problem.d)


def _onto(x: Array, weights: Array) -> Array:
    """(heads, m, n, B) the tokens' inner products with weights (heads, D, m): one matrix product for all heads."""
    heads, embed, width = weights.shape
    rows = jnp.swapaxes(weights, 1, 2).reshape(-1, embed)
    return jnp.matmul(rows, x.reshape(embed, -1), precision=HIGHEST).reshape(heads, width, *x.shape[1:])


def weights(params: KernelParams, x: Array, kind: str, c: Array | float) -> Array:
    """Attention weights S_h of every token (query) on every token (key), in every head and sample.

    The sum over the d coordinates of a head is written out, so that XLA fuses it and vectorises over samples.

    Args:
      params: KernelParams.
      x: (D, n, B) tokens.
      kind: the kernel.
      c: its constant.

    Returns:
      (heads, n, n, B), query first.

    References:
      arXiv 2411.07538.
    """
    query, key = _onto(x, params.w_q), _onto(x, params.w_k)
    parts = [(query[:, i], key[:, i]) for i in range(query.shape[1])]
    products = sum(q[:, :, None] * k[:, None] for q, k in parts)
    query_squares, key_squares = sum(q * q for q, _ in parts), sum(k * k for _, k in parts)
    return attention(kind, jnp.asarray(products), jnp.asarray(query_squares), jnp.asarray(key_squares), c, axis=-2)


def forward(params: KernelParams, x: Array, kind: str, c: Array | float) -> Array:
    """Outputs of multi-head attention with a kernel.

        MH(X) = sum_h S_h X W_h^V W_h^O,   S_h = kernel(X W_h^Q, X W_h^K)

    which is concat_h(S_h X W_h^V) W^O.

    Args:
      params: KernelParams.
      x: (D, n, B) tokens.
      kind: "softmax", "gaussian" or "linear".
      c: kernel constant, > 0, may be traced.

    Returns:
      (d_out, n, B).

    Examples:
      >>> params = init(jax.random.key(0), KernelProblem(embed=6, d_out=2), KernelHyper())
      >>> forward(params, jnp.ones((6, 5, 3)), "gaussian", 0.25).shape
      (2, 5, 3)

    References:
      arXiv 2411.07538, multi-head attention.
    """
    value = _onto(x, jnp.matmul(params.w_v, params.w_o, precision=HIGHEST))  # (heads, d_out, n, B)
    scores = weights(params, x, kind, c)
    heads, tokens = scores.shape[:2]
    return jnp.asarray(sum(scores[h, None, :, j] * value[h, :, None, j] for h in range(heads) for j in range(tokens)))


def _outside(basis: Array, vector: Array) -> Array:
    """The part of a vector that is orthogonal to the columns of a basis."""
    return vector - jnp.matmul(basis, jnp.matmul(basis.T, vector, precision=HIGHEST), precision=HIGHEST)


def orthonormal(columns: Array) -> tuple[Array, Array]:
    """An orthonormal basis of the span of some columns, by Gram and Schmidt's process done twice.

    Written out because LAPACK's decompositions, which XLA calls on a CPU, can wait for each other forever in a program
    that runs on several devices.

    Args:
      columns: (m, k).

    Returns:
      (basis (m, min(m, k)), rank ()): the first `rank` columns are orthonormal, the others 0. A column counts as
      dependent if less than 100 rounding errors of its length are outside the span of those before it.

    Examples:
      >>> basis, rank = orthonormal(jnp.array([[3.0, 6.0, 1.0], [0.0, 0.0, 2.0]]))
      >>> basis.tolist(), int(rank)
      ([[1.0, 0.0], [0.0, 1.0]], 2)

    References:
      Giraud, Langou, Rozloznik, Computers and Mathematics with Applications 2005: twice is enough.
    """
    room = min(columns.shape)
    tolerance = 100 * jnp.finfo(columns.dtype).eps

    def add(i: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, rank = found
        column = columns[:, i]
        rest = _outside(basis, _outside(basis, column))
        length = jnp.linalg.norm(rest)
        new = (length > tolerance * jnp.linalg.norm(column)) & (rank < room)
        unit = rest / jnp.where(new, length, 1)
        return basis.at[:, jnp.where(new, rank, room)].set(unit, mode="drop"), rank + new.astype(rank.dtype)

    start = jnp.zeros((columns.shape[0], room), columns.dtype), jnp.zeros((), jnp.int32)
    return jax.lax.fori_loop(0, columns.shape[1], add, start)


def value_map(params: KernelParams, x: Array, kind: str, c: Array | float) -> Array:
    """A matrix whose columns span all outputs that W_V alone can make.

        vec MH = sum_h (S_h X (x) (W_h^O)^T) vec W_h^V,   rank (H = 1) = rank(S X) * rank(W^O)

    The rows of W_h^O are replaced by an orthonormal basis of theirs, which spans the same outputs with
    min(d, d_out) instead of d columns per embedding coordinate.

    Args:
      params: KernelParams.
      x: (D, n, B) tokens.
      kind: the kernel.
      c: its constant.

    Returns:
      (d_out n B, heads D min(d, d_out)).

    Examples:
      >>> params = init(jax.random.key(0), KernelProblem(embed=6, d=2, d_out=3), KernelHyper())
      >>> value_map(params, jnp.ones((6, 5, 4)), "softmax", 0.25).shape
      (60, 12)

    References:
      Derived here from the model of arXiv 2411.07538.
    """
    basis = jax.vmap(lambda rows: orthonormal(rows.T)[0])(params.w_o)  # (heads, d_out, min(d, d_out))
    mixed = jnp.einsum("hkjb,Djb->hDkb", weights(params, x, kind, c), x, precision=HIGHEST)
    whole = jnp.einsum("hDkb,hor->okbhDr", mixed, basis, precision=HIGHEST)
    return whole.reshape(params.w_o.shape[2] * x.shape[1] * x.shape[2], -1)


def value_optimum(params: KernelParams, samples: Samples, kind: str, c: Array | float) -> tuple[Array, Array]:
    """The smallest loss that W_V alone can reach, as a share of that of a zero output, and the rank of what it spans.

        min_{W_V} ||MH - y||^2 / ||y||^2 = ||y - U U^T y||^2 / ||y||^2

    with U an orthonormal basis of what `value_map` spans. For i.i.d. normal targets its mean is
    1 - rank / (N n d_out).

    Args:
      params: KernelParams, of which W_V is not read.
      samples: Samples.
      kind: the kernel.
      c: its constant.

    Returns:
      (ratio (), rank ()), the ratio in [0, 1] up to rounding.

    References:
      Derived here: training W_V alone is linear least squares.
    """
    basis, rank = orthonormal(value_map(params, samples.x, kind, c))
    y = samples.y.ravel()
    missed = _outside(basis, _outside(basis, y))
    return jnp.sum(missed * missed) / jnp.sum(y * y), rank
