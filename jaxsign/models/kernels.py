"""Attention kernels behind one signature: softmax, Gaussian and linear; from queries and keys, or inner products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsign.problems.kernel_attention import KERNELS
from jaxsign.validation import known, positive_int

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


def attention(
    kind: str, products: Array, query_squares: Array, key_squares: Array, c: Array | float, axis: int = -1
) -> Array:
    """Attention weights of every query on every key, from inner products only.

        softmax   S_kj = exp(2c <q_k, k_j>) / sum_l exp(2c <q_k, k_l>)
        gaussian  S_kj = exp(-c ||q_k - k_j||^2), not normalised
        linear    S_kj = 2c <q_k, k_j>

    One constant serves all three: the Gaussian kernel's exponent is softmax's less c|q|^2 + c|k|^2. A model without the
    factor 1/sqrt(d) has c = 1/2.

    Args:
      kind: "softmax", "gaussian" or "linear".
      products: (..., n_q, n_k) inner products <q, k>.
      query_squares: (..., n_q) |q|^2, read by the Gaussian kernel only.
      key_squares: (..., n_k) |k|^2, read by the Gaussian kernel only.
      c: (), the kernel constant, > 0, may be traced.
      axis: the keys' axis of products, < 0, with the queries' before it; -2 leaves room for samples behind them.

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
        return jax.nn.softmax(score, axis=axis)
    if kind == "linear":
        return score
    return jnp.exp(score - c * (jnp.expand_dims(query_squares, axis) + jnp.expand_dims(key_squares, axis - 1)))


def kernel(kind: str) -> Kernel:
    """The kernel of a name as a function of queries and keys.

    Args:
      kind: "softmax", "gaussian" or "linear".

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
