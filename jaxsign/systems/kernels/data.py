"""Samples of kernel attention: random targets to memorise, and retrieval of a marked token; pure, key first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.kernels.problem import KernelHyper, KernelProblem

Array = jax.Array
#: Coordinates of a token that mean something in "retrieval"; its content begins after them.
MARKER, CONSTANT, CONTENT = 0, 1, 2


class Samples(NamedTuple):
    """Sequences of tokens, each token with its target. The samples are the last axis throughout: a sample's own
    arithmetic is a few small matrices, and only across samples is there anything to vectorise.

    Args:
      x: (D, n, B) tokens.
      y: (d_out, n, B) targets.
    """

    x: Array
    y: Array


def sample(key: Array, problem: KernelProblem, hyper: KernelHyper, count: int) -> Samples:
    """Draws samples by the problem's law.

        random     x ~ N(0, I/D),   y ~ N(0, target_std^2)
        retrieval  x = (1 if marked, 1, u),   u ~ N(0, I),   y = the first d_out numbers of the marked token's u

    In "retrieval" one token of a sample, uniformly, carries the marker, and all tokens have its content as their
    target: attention must find it. The constant lets queries agree on what they look for.

    Args:
      key: a key.
      problem: shapes and the law.
      hyper: target_std, may be traced.
      count: samples, int >= 1.

    Returns:
      Samples.

    Examples:
      >>> sample(jax.random.key(0), KernelProblem(tokens=3, embed=5), KernelHyper(), 7).x.shape
      (5, 3, 7)

    References:
      Random targets: arXiv 2411.07538, with laws reconstructed. Retrieval: ours.
    """
    inputs, other = jax.random.split(key)
    x = jax.random.normal(inputs, (problem.embed, problem.tokens, count))
    if problem.targets == "random":
        noise = jax.random.normal(other, (problem.d_out, problem.tokens, count))
        return Samples(x * problem.embed**-0.5, hyper.target_std * noise)
    place = jax.random.randint(other, (count,), 0, problem.tokens)
    marker = jax.nn.one_hot(place, problem.tokens, dtype=x.dtype, axis=0)
    x = x.at[MARKER].set(marker).at[CONSTANT].set(1)
    content = x[CONTENT : CONTENT + problem.d_out]
    y = jnp.sum(marker[None] * content, axis=1, keepdims=True)
    return Samples(x, jnp.broadcast_to(y, content.shape))
