"""Prompts of in-context linear regression: pure samplers, key first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.linear_attention.problem import RegressionHyper, RegressionProblem

Array = jax.Array


class Prompts(NamedTuple):
    """Regression tasks, each with labelled inputs and one question. The prompts are the last axis throughout: the
    arithmetic of a prompt is a few small matrices, and only across prompts is there anything to vectorise.

    Args:
      x: (d, n_context+1, B) inputs; the last one is the question.
      w: (d, B) the task's weights, w* ~ N(0, I).
    """

    x: Array
    w: Array

    @property
    def target(self) -> Array:
        """(B,) the answer, <x_(n+1), w*>."""
        return jnp.sum(self.x[:, -1] * self.w, axis=0)

    def matrix(self) -> Array:
        """(d+1, n_context+1, B) the prompts Z_0: columns (x_i; y_i), the last one (x_(n+1); 0)."""
        y = jnp.sum(self.x * self.w[:, None], axis=0).at[-1].set(0)
        return jnp.concatenate([self.x, y[None]])


def sample(key: Array, problem: RegressionProblem, hyper: RegressionHyper, count: int) -> Prompts:
    """Draws prompts: x_i by the problem's law, w* ~ N(0, I), y_i = <x_i, w*>.

        normal: x ~ N(0, I)     spherical: x = u     gamma: x = sqrt(r) u,  r ~ Gamma(shape, scale)

    with u uniform on the unit sphere.

    Args:
      key: a key.
      problem: shapes and the law of x.
      hyper: numbers of the gamma law, may be traced.
      count: prompts, int >= 1.

    Returns:
      Prompts.

    Examples:
      >>> sample(jax.random.key(0), RegressionProblem(d=3, n_context=4), RegressionHyper(), 7).x.shape
      (3, 5, 7)

    References:
      arXiv 2310.01082, data.
    """
    inputs, weights, lengths = jax.random.split(key, 3)
    x = jax.random.normal(inputs, (problem.d, problem.n_context + 1, count))
    w = jax.random.normal(weights, (problem.d, count))
    if problem.inputs != "normal":
        x = x * jax.lax.rsqrt(jnp.sum(x * x, axis=0, keepdims=True))
    if problem.inputs == "gamma":
        x = x * jnp.sqrt(hyper.gamma_scale * gamma(lengths, hyper.gamma_shape, x.shape[1:]))[None]
    return Prompts(x, w)


def gamma(key: Array, shape: Array, size: tuple[int, ...]) -> Array:
    """Draws from Gamma(shape, 1) without a loop per number: proposals in one go, of which the accepted are kept.

    `jax.random.gamma` loops until its slowest number is accepted. Here a quarter more proposals than needed are drawn,
    all at once, and the accepted ones are taken in order, which are independent draws of the law: Marsaglia and Tsang
    accept more than 95 % for shape >= 1, and Gamma(k) = Gamma(k+1) * U^(1/k) in law.

    Args:
      key: a key.
      shape: k > 0, may be traced.
      size: shape of the result; from some hundreds of numbers on there are always enough proposals.

    Returns:
      Array of `size`.

    References:
      Marsaglia and Tsang, ACM TOMS 2000.
    """
    count = 1
    for length in size:
        count *= length
    proposals = count + count // 4 + 64
    normals, uniforms, powers = jax.random.split(key, 3)
    z = jax.random.normal(normals, (proposals,))
    third = shape + 1 - 1 / 3  # of Gamma(k + 1)
    cube = (1 + z / jnp.sqrt(9 * third)) ** 3
    safe = jnp.maximum(cube, jnp.finfo(z.dtype).tiny)
    log_u = -jax.random.exponential(uniforms, (proposals,))
    accepted = (cube > 0) & (log_u < z * z / 2 + third * (1 - safe + jnp.log(safe)))
    place = jnp.where(accepted, jnp.cumsum(accepted) - 1, count)
    kept = jnp.zeros((count,), z.dtype).at[place].set(third * safe, mode="drop").reshape(size)
    return kept * jnp.exp(-jax.random.exponential(powers, size) / shape)
