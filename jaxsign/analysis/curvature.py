"""Curvature and gradient noise of any loss: Hessians, condition numbers, smoothness along a step, heavy tails."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxsign.validation.values import known, positive_int, real

__all__ = [
    "directional_smoothness",
    "eigenvalues",
    "gradient_noise",
    "hessian",
    "hessian_diagonal",
    "hvp",
    "kurtosis",
    "robust_condition",
    "robust_condition_number",
    "tail_index",
]

Array = jax.Array
PyTree = Any
Loss = Callable[[PyTree], Array]
#: Hessian columns that are computed together: enough to fill the registers, few enough to stay in the cache.
COLUMNS = 8
FORMS = ("diagonal", "eigenvalues")


def hvp(loss: Loss, params: PyTree, direction: PyTree) -> PyTree:
    """Product of the Hessian with a direction, H u, without forming H.

        H u = d/da grad L(w + a u) at a = 0

    Args:
      loss: `params -> ()`.
      params: where the Hessian is taken.
      direction: tree like params.

    Returns:
      Tree like params.

    Examples:
      >>> hvp(lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])).tolist()
      [6.0, 12.0]

    References:
      Pearlmutter, Neural Computation 1994.
    """
    return jax.jvp(jax.grad(loss), (params,), (direction,))[1]


def _columns(loss: Loss, params: PyTree, keep: Callable[[Array, Array], Array]) -> Array:
    """`keep(i, column i of H)` for every parameter, stacked, in the order of `ravel_pytree`."""
    flat, unravel = ravel_pytree(params)

    def gradient(w: Array) -> Array:
        return jax.grad(lambda x: loss(unravel(x)))(w)

    def column(i: Array) -> Array:
        unit = jnp.zeros_like(flat).at[i].set(1)
        return keep(i, jax.jvp(gradient, (flat,), (unit,))[1])

    return jax.lax.map(column, jnp.arange(flat.size), batch_size=min(COLUMNS, flat.size))


def hessian(loss: Loss, params: PyTree) -> Array:
    """The exact Hessian over all parameters in the order of `jax.flatten_util.ravel_pytree`.

    Args:
      loss: `params -> ()`.
      params: N numbers in all; N^2 numbers are returned.

    Returns:
      (N, N), symmetric up to rounding.

    Examples:
      >>> hessian(lambda w: w["a"] * w["b"] ** 2, {"a": jnp.array(1.0), "b": jnp.array(2.0)}).tolist()
      [[0.0, 4.0], [4.0, 2.0]]
    """
    return _columns(loss, params, lambda i, column: column)


def hessian_diagonal(loss: Loss, params: PyTree) -> PyTree:
    """The exact diagonal of the Hessian: N Hessian-vector products, memory of a few of them.

    Args:
      loss: `params -> ()`.
      params: N numbers in all.

    Returns:
      Tree like params.

    Examples:
      >>> hessian_diagonal(lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0])).tolist()
      [6.0, 12.0]
    """
    return ravel_pytree(params)[1](_columns(loss, params, lambda i, column: column[i]))


def robust_condition(values: Array) -> Array:
    """How far the largest curvature is above the middle one, max_i |v_i| / median_i |v_i|.

    Args:
      values: (N,) diagonal entries or eigenvalues of a Hessian.

    Returns:
      (), in [1, inf]; infinite where half of the values are 0.

    Raises:
      ValueError: for a whole Hessian in their place.

    Examples:
      >>> float(robust_condition(jnp.array([1.0, -8.0, 2.0])))
      4.0

    References:
      arXiv 2310.01082, "robust condition number".
    """
    if values.ndim != 1:
        raise ValueError(f"values must be (N,), a Hessian's diagonal or eigenvalues, got shape {values.shape}")
    size = jnp.abs(values)
    return jnp.max(size) / jnp.median(size)


@jax.custom_batching.sequential_vmap
def eigenvalues(matrix: Array) -> Array:
    """Eigenvalues of a Hessian, ascending; rounding may leave it a little asymmetric.

    Under `vmap` matrices are taken one by one: a batch handed to LAPACK waits for workers of the very pool that it runs
    in, and several CPU devices lock each other up for good (jaxlib 0.10.2).

    Args:
      matrix: (N, N).

    Returns:
      (N,).

    Examples:
      >>> eigenvalues(jnp.array([[0.0, 2.0], [2.0, 0.0]])).tolist()
      [-2.0, 2.0]
    """
    return jnp.linalg.eigvalsh((matrix + matrix.T) / 2)


def robust_condition_number(loss: Loss, params: PyTree, by: str = "diagonal") -> Array:
    """Robust condition number of a loss, max / median over the Hessian's diagonal or its eigenvalues.

        R = max_i |H_ii| / median_i |H_ii|      or      max_i |lambda_i| / median_i |lambda_i|

    The diagonal belongs to coordinate-wise optimizers, which see coordinates and not eigenvectors.

    Args:
      loss: `params -> ()`.
      params: N numbers in all.
      by: "diagonal", or "eigenvalues", which forms H and takes N^3 operations.

    Returns:
      ().

    Raises:
      ValueError: for an unknown `by`.

    Examples:
      >>> float(robust_condition_number(lambda w: jnp.sum(jnp.array([1.0, 3.0, 9.0]) * w**2), jnp.ones(3)))
      3.0

    References:
      arXiv 2310.01082; Jiang, Malik, Li, arXiv 2210.09134.
    """
    if known("by", by, FORMS) == "diagonal":
        return robust_condition(ravel_pytree(hessian_diagonal(loss, params))[0])
    return robust_condition(eigenvalues(hessian(loss, params)))


def directional_smoothness(loss: Loss, params: PyTree, move: PyTree) -> Array:
    """Curvature along a step, u^T H u / ||u||^2.

    Args:
      loss: `params -> ()`.
      params: where the Hessian is taken.
      move: the step u, tree like params; its length does not matter.

    Returns:
      (); NaN for a step of length 0.

    Examples:
      >>> weights = jnp.array([1.0, 3.0])
      >>> float(directional_smoothness(lambda w: jnp.sum(weights * w**2), jnp.ones(2), jnp.array([0.0, 0.1])))
      6.0

    References:
      arXiv 2310.01082; Pan and Li, arXiv 2306.00204.
    """
    u, unravel = ravel_pytree(move)
    u = u / jnp.max(jnp.abs(u))  # the squares of tiny steps underflow
    u = u / jnp.linalg.norm(u)
    return jnp.vdot(u, ravel_pytree(hvp(loss, params, unravel(u)))[0])


def gradient_noise(gradient: Callable[[Array], PyTree], mean: PyTree, key: Array, draws: int) -> Array:
    """Norms of the deviations of stochastic gradients from the mean one, ||g_B - g||.

    Args:
      gradient: `key -> tree`, the gradient of one fresh batch.
      mean: the gradient g of the whole law, or of a sample far larger than a batch.
      key: a key, split over the draws.
      draws: number of batches, int >= 1.

    Returns:
      (draws,).

    Raises:
      ValueError: for draws < 1.

    Examples:
      >>> gradient_noise(lambda key: jax.random.normal(key, (3,)), jnp.zeros(3), jax.random.key(0), 5).shape
      (5,)

    References:
      arXiv 2310.01082, "heavy-tailed gradient noise"; Zhang et al., arXiv 1912.03194.
    """
    centre = ravel_pytree(mean)[0]

    def norm(key: Array) -> Array:
        return jnp.linalg.norm(ravel_pytree(gradient(key))[0] - centre)

    return jax.lax.map(norm, jax.random.split(key, positive_int("draws", draws)))


def kurtosis(x: Array) -> Array:
    """Pearson's kurtosis, E (x - mean)^4 / (E (x - mean)^2)^2: 3 for a normal law, more for heavier tails.

    Args:
      x: (N,) a sample.

    Returns:
      (), >= 1.

    Examples:
      >>> float(kurtosis(jnp.array([-1.0, 1.0])))
      1.0
    """
    centred = (x - jnp.mean(x)) / jnp.std(x)
    return jnp.mean(centred**4)


def tail_index(x: Array, share: float = 0.05) -> Array:
    """Hill's estimate of the exponent a of a tail P(X > x) ~ x^-a: the smaller, the heavier.

        1/a = mean over the k largest of ln(x_(i) / x_(k+1))

    Args:
      x: (N,) a positive sample.
      share: of the sample that counts as its tail, in (0, 1).

    Returns:
      ().

    Raises:
      ValueError: for a share outside (0, 1), or one that leaves no tail.

    Examples:
      >>> u = jnp.linspace(1 / 4000, 1 - 1 / 4000, 2000)
      >>> bool(abs(tail_index(u ** (-1 / 3)) - 3) < 0.1)
      True

    References:
      Hill, Annals of Statistics 1975.
    """
    real("share", share, low=0.0, high=1.0, open_low=True)
    count = int(share * x.size)
    if not 1 <= count < x.size:
        raise ValueError(f"share must leave between 1 and {x.size - 1} of {x.size} values, got share={share}")
    top = jax.lax.top_k(x, count + 1)[0]
    return 1 / jnp.mean(jnp.log(top[:-1] / top[-1]))
