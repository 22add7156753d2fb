"""One sequence of tokens with a target for each: pure sampler, key first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.residual.problem import ResidualProblem

Array = jax.Array


class Tokens(NamedTuple):
    """What is fitted.

    Args:
      x: (n, d) tokens X.
      y: (n, d_out) targets Y.
    """

    x: Array
    y: Array


def sample(key: Array, problem: ResidualProblem) -> Tokens:
    """Draws tokens of length about 1 and targets that know nothing of them.

        rows of X ~ N(0, I/d),   entries of Y ~ N(0, 1)

    Args:
      key: key of the stream "data".
      problem: shapes.

    Returns:
      Tokens.

    Examples:
      >>> sample(jax.random.key(0), ResidualProblem(n=3, d=4, d_out=2)).y.shape
      (3, 2)

    References:
      Reconstructed.
    """
    tokens, targets = jax.random.split(key)
    x = jax.random.normal(tokens, (problem.n, problem.d)) / jnp.sqrt(jnp.asarray(problem.d, jnp.zeros(()).dtype))
    return Tokens(x, jax.random.normal(targets, (problem.n, problem.d_out)))
