"""How does a query weigh keys? Softmax, Gaussian, linear and uniform attention behind one signature."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.systems.two_layer.problem import KERNELS
from jaxsign.validation.values import known, positive_int

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST
Kernel = Callable[[Array, Array, Array | float], Array]


def default_constant(d: int) -> float:
    """The kernel constant at which softmax has its usual factor, c = 1 / (2 sqrt(d)).

    Args:
      d: head size, int >= 1.

    Returns:
      c > 0.

    Raises:
      ValueError: for d < 1.

    Examples:
      >>> default_constant(4)
      0.25

    References:
      Derived here: -c ||q - k||^2 = 2c <q, k> - c |q|^2 - c |k|^2, with 2c = 1/sqrt(d).
    """
    return 0.5 / positive_int("d", d) ** 0.5


@functools.cache
def _pairs(length: int) -> np.ndarray:
    """(pairs, length) incidence matrix: +1 and -1 at the two members of every unordered pair."""
    first, second = np.triu_indices(length, k=1)
    out = np.zeros((first.size, length), np.float32)
    out[np.arange(first.size), first], out[np.arange(first.size), second] = 1, -1
    return out


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(scores: Array, axis: int = -1) -> Array:
    """Softmax over one axis whose derivative keeps its relative accuracy when attention saturates.

        d s_a = sum_b s_a s_b (d z_a - d z_b)

    The usual form s_a (d z_a - sum_b s_b d z_b) cancels when some s_a is near 1. The sign of the result is then
    rounding noise, which a sign optimizer would follow. Here every pair's product s_a s_b is formed first.

    Args:
      scores: any shape with L entries along `axis`.
      axis: the axis of the keys.

    Returns:
      The same shape, non-negative, summing to 1 along `axis`.

    Examples:
      >>> softmax(jnp.zeros(2)).tolist()
      [0.5, 0.5]
    """
    return jax.nn.softmax(scores, axis=axis)


@softmax.defjvp
def _softmax_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (scores,), (dscores,) = primals, tangents
    s = softmax(scores, axis)
    keys = axis % scores.ndim
    # (..., pairs, L, ...): the pairs get a separate axis before the axis of the keys.
    incidence = jnp.asarray(_pairs(scores.shape[keys]), s.dtype)
    incidence = incidence.reshape((1,) * keys + incidence.shape + (1,) * (scores.ndim - 1 - keys))
    positive, negative = jnp.maximum(incidence, 0), jnp.maximum(-incidence, 0)
    s_pair, d_pair = jnp.expand_dims(s, keys), jnp.expand_dims(dscores, keys)
    weight = jnp.sum(positive * s_pair, keys + 1) * jnp.sum(negative * s_pair, keys + 1)
    change = weight * jnp.sum(incidence * d_pair, keys + 1)
    return s, jnp.sum(incidence * jnp.expand_dims(change, keys + 1), keys)


def attention(
    kind: str,
    products: Array,
    query_squares: Array | None,
    key_squares: Array | None,
    c: Array | float,
    axis: int = -1,
) -> Array:
    """Attention weights of every query on every key, from inner products only.

        softmax   S_kj = exp(2c <q_k, k_j>) / sum_l exp(2c <q_k, k_l>)
        gaussian  S_kj = exp(-c ||q_k - k_j||^2), not normalised
        linear    S_kj = 2c <q_k, k_j>
        uniform   S_kj = 1/L for L keys, whatever queries and keys are: the control without attention

    One constant serves the first three: the Gaussian kernel's exponent is softmax's minus c|q|^2 + c|k|^2. A model
    without the factor 1/sqrt(d) has c = 1/2.

    Args:
      kind: "softmax", "gaussian", "linear" or "uniform".
      products: (..., n_q, n_k) inner products <q, k>.
      query_squares: (..., n_q) |q|^2, read by the Gaussian kernel only; None for the others.
      key_squares: (..., n_k) |k|^2, like query_squares.
      c: (), the kernel constant, > 0, may be traced.
      axis: the keys' axis of products, < 0, with the queries' before it; at -2 the last axis holds samples.

    Returns:
      Like products.

    Raises:
      ValueError: for an unknown kind, with the nearest one.

    Examples:
      >>> q, k = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 0.0]])
      >>> attention("gaussian", q @ k.T, (q * q).sum(-1), (k * k).sum(-1), 0.5).tolist()
      [[1.0, 0.6065306663513184]]

    References:
      arXiv 2411.07538, softmax and Gaussian kernel attention; the common constant is derived here.
    """
    known("kernel", kind, KERNELS)
    score = 2 * c * products
    if kind == "softmax":
        return softmax(score, axis)
    if kind == "linear":
        return score
    if kind == "uniform":
        return jnp.full_like(score, 1 / score.shape[axis])
    return jnp.exp(_exponent(score, query_squares, key_squares, c, axis))


def log_attention(
    kind: str,
    products: Array,
    query_squares: Array | None,
    key_squares: Array | None,
    c: Array | float,
    axis: int = -1,
) -> Array:
    """Logarithm of `attention`, without the underflow of its weights; NaN where a linear weight is negative.

    Args:
      kind: "softmax", "gaussian", "linear" or "uniform".
      products: as in `attention`, like the others.
      query_squares: (..., n_q) or None.
      key_squares: (..., n_k) or None.
      c: ().
      axis: the keys' axis of products.

    Returns:
      Like products.

    Raises:
      ValueError: for an unknown kind, with the nearest one.

    Examples:
      >>> log_attention("gaussian", jnp.zeros((1, 1)), jnp.full(1, 400.0), jnp.zeros(1), 0.5).tolist()
      [[-200.0]]
    """
    known("kernel", kind, KERNELS)
    score = 2 * c * products
    if kind == "softmax":
        return jax.nn.log_softmax(score, axis=axis)
    if kind == "uniform":
        return jnp.full_like(score, -math.log(score.shape[axis]))
    return jnp.log(score) if kind == "linear" else _exponent(score, query_squares, key_squares, c, axis)


def _exponent(
    score: Array, query_squares: Array | None, key_squares: Array | None, c: Array | float, axis: int
) -> Array:
    """-c ||q - k||^2 of every query and key."""
    assert query_squares is not None and key_squares is not None, "the Gaussian kernel reads them"  # noqa: PT018
    return score - c * (jnp.expand_dims(query_squares, axis) + jnp.expand_dims(key_squares, axis - 1))


def kernel(kind: str) -> Kernel:
    """The kernel of a name as a function of queries and keys.

    Args:
      kind: "softmax", "gaussian", "linear" or "uniform".

    Returns:
      `(query (..., n_q, d), key (..., n_k, d), c) -> weights (..., n_q, n_k)`, the `attention` of their inner products.

    Raises:
      ValueError: for an unknown kind, with the nearest one.

    Examples:
      >>> kernel("softmax")(jnp.ones((2, 3)), jnp.ones((4, 3)), default_constant(3)).tolist()[0]
      [0.25, 0.25, 0.25, 0.25]

    References:
      arXiv 2411.07538.
    """
    known("kernel", kind, KERNELS)

    def weights(query: Array, key: Array, c: Array | float) -> Array:
        products = jnp.einsum("...qd,...kd->...qk", query, key, precision=HIGHEST)
        return attention(kind, products, jnp.sum(query * query, axis=-1), jnp.sum(key * key, axis=-1), c)

    return weights
