"""References for noisy digits, which have no exact law: the nearest class mean, and a first step on equal images."""

import jax
import jax.numpy as jnp

from jaxsign.systems.digits.data import Patches

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


def one_step_margins(images: Array, labels: Array, noise: Array) -> tuple[Array, Array]:
    """Mean over standard deviation of the test margin after the first step of SignGD and of GD, attention uniform.

        SignGD, w = sgn(sum_i y_i x_i):   ||mu||_1 / (sigma sqrt(p))
        GD,     w = sum_i y_i x_i:        sqrt(n) ||mu||_2^2 / (sigma^2 sqrt(p))

    with mu half the difference of the classes' mean images, and p pixels of noise of standard deviation sigma, each
    shared by all n images and none of them in mu; how images of a class differ is left out. Scaling the images by s
    scales the first by s and the second by s^2: below sigma ||mu||_1 / (sqrt(n) ||mu||_2^2) SignGD errs less.

    Args:
      images: (n, 28, 28) training images without noise.
      labels: (n,) class index, 0 or 1, as many of each.
      noise: (n, 28, 28) their noise, 0 outside the border.

    Returns:
      Both numbers; the error is Phi(-number).

    References:
      Derived here, after the overlap laws of `jaxsign.theory`, for noise that all examples share.
    """
    n = labels.shape[0]
    one = jnp.where(labels == 0, 1.0, -1.0).astype(images.dtype)
    mu = jnp.tensordot(one, images, 1, precision=jax.lax.Precision.HIGHEST) / n
    pixels = jnp.sum(jnp.any(noise != 0, axis=0))
    power = jnp.sum(noise * noise) / n  # sigma^2 p
    squared = jnp.sum(mu * mu)
    return jnp.sum(jnp.abs(mu)) / jnp.sqrt(power), jnp.sqrt(n * pixels.astype(power.dtype)) * squared / power
