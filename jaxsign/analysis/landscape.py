"""How rough is the loss on a plane through a point of parameter space?"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsign.validation.values import positive_int

__all__ = ["directions", "plane", "roughness"]

Array = jax.Array


def directions(key: Array, shape: tuple[int, ...]) -> Array:
    """Two random directions, uniform and orthonormal.

    Args:
      key: a key.
      shape: shape of a point; at least 2 numbers.

    Returns:
      (2, *shape), each of Frobenius norm 1 and orthogonal to the other.

    Examples:
      >>> float(jnp.sum(directions(jax.random.key(0), (3, 2)) ** 2).round(5))
      2.0
    """
    first, second = (one.ravel() for one in jax.random.normal(key, (2, *shape)))
    first = first / jnp.linalg.norm(first)
    second = second - jnp.vdot(first, second) * first
    return jnp.stack([first, second / jnp.linalg.norm(second)]).reshape(2, *shape)


def plane(loss: Callable[[Array], Array], centre: Array, pair: Array, points: int) -> Array:
    """The loss on a square of the plane through `centre`, as far out as the centre's norm.

        L(a, b) = loss(w + ||w|| (a u + b v)),   a, b = -1, ..., 1

    Directions as long as the weights make planes of different solutions comparable.

    Args:
      loss: `array -> ()`.
      centre: the point w.
      pair: (2, *centre.shape) orthonormal directions u, v.
      points: grid points of a side, int >= 3; the centre is one of them if it is odd.

    Returns:
      (points, points), a along the first axis.

    Raises:
      ValueError: for points < 3.

    Examples:
      >>> eye = jnp.eye(2)
      >>> plane(lambda w: jnp.sum(w**2), jnp.array([1.0, 0.0]), eye, 3)[:, 1].tolist()
      [0.0, 1.0, 4.0]

    References:
      Li et al., Visualizing the Loss Landscape of Neural Nets, arXiv 1712.09913, with one norm for all weights.
    """
    steps = jnp.linalg.norm(centre) * jnp.linspace(-1, 1, positive_int("points", points, minimum=3))

    def row(a: Array) -> Array:
        return jax.vmap(lambda b: loss(centre + a * pair[0] + b * pair[1]))(steps)

    return jax.lax.map(row, steps)


def roughness(values: Array) -> Array:
    """How far the lines of a plane are from single valleys: their excess variation, averaged over rows and columns.

        R(line) = ( sum_i |L_(i+1) - L_i| - (L_first - min L) - (L_last - min L) ) / (max L - min L)

    A line that only falls and then rises has R = 0, whatever its shape; a barrier between two valleys of equal depth
    adds twice its height, in units of the line's range.

    Args:
      values: (points, points) losses, as `plane` returns them.

    Returns:
      (), >= 0 up to rounding; lines without variation count as 0.

    Examples:
      >>> bowl = jnp.arange(-2.0, 3.0)[:, None] ** 2 + jnp.arange(-2.0, 3.0)[None] ** 2
      >>> float(roughness(bowl))
      0.0

    References:
      Ours.
    """
    lines = jnp.concatenate([values, values.T])
    low, high = jnp.min(lines, axis=1), jnp.max(lines, axis=1)
    excess = jnp.sum(jnp.abs(jnp.diff(lines, axis=1)), axis=1) - lines[:, 0] - lines[:, -1] + 2 * low
    return jnp.mean(jnp.where(high > low, excess / jnp.where(high > low, high - low, 1), 0))
