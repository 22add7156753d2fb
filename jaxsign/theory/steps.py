"""How does one step of SignGD change every feature? Exact where supports are disjoint; tracers are accepted.

Notation as in `jaxsign.theory`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.systems.two_layer.problem import Problem

Array = jax.Array


def value_noise_step(eta: Any, noise_l1: Array) -> Array:
    """One SignGD step of the mean value noise:  y_i <v, xi_i>  +=  2 eta ||xi_i||_1.

    Args:
      eta: learning rate.
      noise_l1: (n,) l1 norms of the noise patches.

    Returns:
      (n,) increments.

    Examples:
      >>> value_noise_step(0.5, jnp.array([2.0])).tolist()
      [2.0]

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    return 2 * eta * noise_l1


def value_noise_share(problem: Problem) -> float:
    """Share of `value_noise_step` that is left at first where noise patches share coordinates.

        E[1/sqrt(k)],   k - 1 ~ Binomial(n (context-1) - 1, s/(d-1))

    k patches use a coordinate, and it moves by the sign of the sum of their values:
    E[x sgn(x + w)] = sqrt(2/pi)/sqrt(k) for standard normal x and w ~ N(0, k-1). It is a law of the first steps, when
    all loss weights are equal.

    Args:
      problem: shapes; Gaussian noise.

    Returns:
      The share, in (0, 1]; 1 for disjoint supports.

    Raises:
      ValueError: for another noise.

    Examples:
      >>> round(value_noise_share(Problem(n=20, d=2000, s=40, m_k=20, m_v=20)), 3)
      0.899

    References:
      Derived here from the model of arXiv 2410.04870.
    """
    from scipy.stats import binom

    if problem.noise != "gaussian":
        raise ValueError(f'the share of value noise is derived for noise="gaussian", got noise={problem.noise!r}')
    if problem.supports == "disjoint":
        return 1.0
    others = np.arange(problem.n * problem.patches)
    return float(np.sum(binom.pmf(others, others[-1], problem.s / (problem.d - 1)) / np.sqrt(1 + others)))


def value_signal_step(eta: Any, mu: Any, p: Array, s: Array, c: Array) -> Array:
    """One SignGD step of the mean value signal:  <v, mu>  +=  2 eta ||mu||_1 sgn(sum_i p_i S_i c_i).

    Args:
      eta: learning rate.
      mu: norm of the signal patch.
      p: (n,) loss weights p_i.
      s: (n,) S_i summed over heads.
      c: (n,) signs c_i.

    Returns:
      () increment.

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    return 2 * eta * mu * jnp.sign(jnp.sum(p * s * c))


def query_noise_step(eta: Any, noise_l1: Array, g: Array, c: Array, key_noise: Array, key_signal: Array) -> Array:
    """One SignGD step of the query noise:  q_i  +=  eta ||xi_i||_1 sgn(g_i) sgn(k_i - c_i k_mu).

    Args:
      eta: learning rate.
      noise_l1: (n,).
      g: (n,).
      c: (n,).
      key_noise: (row, n).
      key_signal: (row,).

    Returns:
      (row, n) increments.

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    return eta * (noise_l1 * jnp.sign(g))[None] * jnp.sign(key_noise - c[None] * key_signal[:, None])


def key_noise_step(
    eta: Any, noise_l1: Array, g: Array, c: Array, a: Array, b: Array, query_noise: Array, query_signal: Array
) -> Array:
    """One SignGD step of the key noise:  k_i  +=  eta ||xi_i||_1 sgn(g_i) sgn(A_i c_i q_mu + B_i q_i).

    Args:
      eta: learning rate.
      noise_l1: (n,).
      g: (n,).
      c: (n,).
      a: (n,) A_i of the head.
      b: (n,) B_i of the head.
      query_noise: (row, n) of the head.
      query_signal: (row,) of the head.

    Returns:
      (row, n) increments.

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    return (
        eta * (noise_l1 * jnp.sign(g))[None] * jnp.sign((a * c)[None] * query_signal[:, None] + b[None] * query_noise)
    )


def query_signal_step(
    eta: Any, mu: Any, p: Array, g: Array, c: Array, a: Array, key_noise: Array, key_signal: Array
) -> Array:
    """One SignGD step of the query signal, a majority vote of the key noise.

        q_mu  +=  eta ||mu||_1 sgn( sum_i c_i p_i A_i g_i (k_i - c_i k_mu) )

    Args:
      eta: learning rate.
      mu: norm of the signal patch.
      p: (n,).
      g: (n,).
      c: (n,).
      a: (n,) A_i of the head.
      key_noise: (row, n) of the head.
      key_signal: (row,) of the head.

    Returns:
      (row,) increments.

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    return eta * mu * jnp.sign(jnp.sum((c * p * a * g)[None] * (key_noise - c[None] * key_signal[:, None]), -1))


def key_signal_step(
    eta: Any, mu: Any, p: Array, g: Array, c: Array, a: Array, b: Array, query_noise: Array, query_signal: Array
) -> Array:
    """One SignGD step of the key signal, minus the majority vote of the query noise.

        k_mu  -=  eta ||mu||_1 sgn( sum_i c_i p_i g_i (A_i c_i q_mu + B_i q_i) )

    Args:
      eta: learning rate.
      mu: norm of the signal patch.
      p: (n,).
      g: (n,).
      c: (n,).
      a: (n,) A_i of the head.
      b: (n,) B_i of the head.
      query_noise: (row, n) of the head.
      query_signal: (row,) of the head.

    Returns:
      (row,) increments.

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    votes = (c * p * g)[None] * ((a * c)[None] * query_signal[:, None] + b[None] * query_noise)
    return -eta * mu * jnp.sign(jnp.sum(votes, -1))
