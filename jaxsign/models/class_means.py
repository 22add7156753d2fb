"""The nearest class mean: a linear rule without training, the reference for noisy digits, which have no exact law."""

import jax
import jax.numpy as jnp

from jaxsign.data.digits import Patches

Array = jax.Array


def scores(train: Patches, x: Array, classes: int) -> Array:
    """Scores whose largest one belongs to the nearest mean of a class's training images.

        score_c = <m_c, x> - ||m_c||^2 / 2,   m_c the mean of the training images of class c

    Args:
      train: Patches of the training images.
      x: (n, tokens, patch^2) images.
      classes: number of classes.

    Returns:
      (n, classes).

    Examples:
      >>> train = Patches(jnp.array([[[0.0]], [[2.0]], [[4.0]]]), jnp.array([0, 1, 1]))
      >>> scores(train, jnp.array([[[1.0]], [[2.0]]]), 2).tolist()
      [[0.0, -1.5], [0.0, 1.5]]
    """
    one = jax.nn.one_hot(train.y, classes, dtype=x.dtype)
    high = jax.lax.Precision.HIGHEST
    means = jnp.matmul(one.T, train.x.reshape(len(train.y), -1), precision=high) / jnp.sum(one, axis=0)[:, None]
    inner = jnp.matmul(x.reshape(len(x), -1), means.T, precision=high)
    return inner - (jnp.sum(means * means, axis=1) / 2)[None]
