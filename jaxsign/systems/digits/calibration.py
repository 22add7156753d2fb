"""How large is a test loss apart from the scale of its margins? Temperature scaling, fitted on validation logits."""

import jax
import jax.numpy as jnp

Array = jax.Array
#: The interval of ln(b s) that contains the root, with s the size of the logits, and the number of halvings.
RANGE, HALVINGS = (-12.0, 12.0), 32


def cross_entropy(logits: Array, y: Array) -> Array:
    """Mean cross-entropy -log softmax(z)_y in nat; with two classes the logistic loss of z_y - z_other.

    Args:
      logits: (n, classes).
      y: (n,) int class index.

    Returns:
      ().

    Examples:
      >>> round(float(cross_entropy(jnp.zeros((3, 2)), jnp.array([0, 1, 1]))), 4)
      0.6931
    """
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


def margins(logits: Array, y: Array) -> Array:
    """(n,) logit of the label minus the largest other logit; an example counts as an error unless it is > 0."""
    label = jax.nn.one_hot(y, logits.shape[1], dtype=bool)
    best = jnp.max(jnp.where(label, -jnp.inf, logits), axis=1)
    return jnp.sum(jnp.where(label, logits, 0), axis=1) - best


def targets(y: Array, classes: int) -> Array:
    """(n, classes) Platt's targets, (n+1)/(n+classes) for the label and 1/(n+classes) for the others.

    They keep the best temperature finite if all validation images are classified correctly.
    """
    count = y.shape[0]
    one = jax.nn.one_hot(y, classes)
    return (count * one + 1) / (count + classes)


def temperature(logits: Array, y: Array) -> Array:
    """The temperature T that minimises the cross-entropy of z / T with Platt's targets t.

        b = 1/T:   d/db mean_i [ -sum_c t_ic log softmax(b z_i)_c ] = mean_i sum_c (softmax(b z_i)_c - t_ic) z_ic = 0

    The cross-entropy is convex in b, so that its derivative has at most one root, which bisection over log b finds. If
    the logits carry no information there is no root; T is then the largest one of the interval, and z/T is almost 0.

    Args:
      logits: (n, classes).
      y: (n,) int class index.

    Returns:
      T > 0, ().

    Examples:
      >>> z = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
      >>> round(float(temperature(z, jnp.array([0, 0, 1, 1]))), 3)  # share of label 4/6 at b z = ln 2
      2.885

    References:
      Guo et al., arXiv 1706.04599; targets of Platt, 1999.
    """
    smoothed = targets(y, logits.shape[1])
    size = jnp.sqrt(jnp.mean((logits - jnp.mean(logits, axis=1, keepdims=True)) ** 2))
    size = jnp.maximum(size, jnp.finfo(logits.dtype).tiny)
    unit = logits / size

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        slope = jnp.sum((jax.nn.softmax(jnp.exp(middle) * unit) - smoothed) * unit)
        return jnp.where(slope > 0, low, middle), jnp.where(slope > 0, middle, high)

    ends = jax.lax.fori_loop(0, HALVINGS, halve, tuple(jnp.asarray(end, logits.dtype) for end in RANGE))
    return size * jnp.exp(-(ends[0] + ends[1]) / 2)
