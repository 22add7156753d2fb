"""The paper's two-layer attention model on the patches of an image, each in its place; one value matrix per class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.digits.problem import DigitsHyper, DigitsProblem

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


class PatchParams(NamedTuple):
    """Weights, all trained, on the pixels of an image, patch by patch.

    Args:
      w_q: (width, tokens, patch^2) queries, all heads.
      w_k: (width, tokens, patch^2) keys.
      w_v: (classes, width, tokens, patch^2) values.
    """

    w_q: Array
    w_k: Array
    w_v: Array


def init(key: Array, problem: DigitsProblem, hyper: DigitsHyper) -> PatchParams:
    """Draws every weight i.i.d. N(0, sigma_0^2).

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: sigma_0, may be traced.

    Returns:
      PatchParams.

    Examples:
      >>> init(jax.random.key(0), DigitsProblem(), DigitsHyper()).w_v.shape
      (2, 16, 16, 49)
    """
    one = (problem.width, problem.tokens, problem.patch**2)
    shapes = [one, one, (len(problem.classes), *one)]
    return PatchParams(*(hyper.sigma_0 * jax.random.normal(k, s) for k, s in zip(jax.random.split(key, 3), shapes)))


def logits(params: PatchParams, x: Array, heads: int) -> Array:
    """One logit per class.

        F_j = (1/m_v) sum_h sum_l 1^T W_{V,j} X softmax(X^T W_K^T W_Q x^(l))

    over the heads h and the query patches l. Token x^(l) is the image with all pixels but those of patch l set to 0, so
    that weights know where a patch is, and patches share no coordinate; with uniform attention F is linear in the
    pixels. The softmax of two logits has the logistic loss of F = F_1 - F_{-1}: with
    two classes this is the paper's model.

    Args:
      params: PatchParams.
      x: (n, tokens, patch^2) patches.
      heads: attention heads, a divisor of the rows of w_q.

    Returns:
      (n, classes).

    References:
      arXiv 2410.04870, model definition; more than two classes are an extension.
    """
    n, tokens, d = x.shape

    def split(weights: Array) -> Array:
        return jnp.einsum("nld,wld->lnw", x, weights, precision=HIGHEST).reshape(tokens, n, heads, -1)

    scores = jnp.einsum("qnhr,knhr->nhqk", split(params.w_q), split(params.w_k), precision=HIGHEST)
    received = jnp.sum(jax.nn.softmax(scores), axis=(1, 2))  # (n, tokens): what a patch gets from all queries
    seen = (received[:, :, None] * x).reshape(n, tokens * d)
    value = jnp.mean(params.w_v, axis=1).reshape(-1, tokens * d)
    return jnp.matmul(seen, value.T, precision=HIGHEST)
