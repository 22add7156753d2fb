"""The linear transformer on regression prompts: by the definition, and through the prompts' Gram matrices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.linear_attention.data import Prompts
from jaxsign.systems.linear_attention.problem import RegressionHyper, RegressionProblem

Array = jax.Array


class LinearParams(NamedTuple):
    """Weights of all layers.

    Args:
      p: (depth, d, d) P' for the sparse form, (depth, d+1, d+1) P for the full one.
      q: the same of Q.
    """

    p: Array
    q: Array


def init(key: Array, problem: RegressionProblem, hyper: RegressionHyper) -> LinearParams:
    """Draws every trained weight i.i.d. N(0, init_std^2).

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: init_std, may be traced.

    Returns:
      LinearParams.

    Examples:
      >>> init(jax.random.key(0), RegressionProblem(d=2, depth=3), RegressionHyper()).p.shape
      (3, 2, 2)

    References:
      arXiv 2310.01082, initialisation.
    """
    side = problem.d if problem.form == "sparse" else problem.width
    p, q = (jax.random.normal(k, (problem.depth, side, side)) for k in jax.random.split(key))
    return LinearParams(hyper.init_std * p, hyper.init_std * q)


def whole(params: LinearParams, width: int) -> LinearParams:
    """P and Q with all of their rows: diag(P', 1) and diag(Q', 0) for the sparse form."""
    if params.p.shape[-1] == width:
        return params
    room = ((0, 0), (0, 1), (0, 1))
    return LinearParams(jnp.pad(params.p, room).at[:, -1, -1].set(1), jnp.pad(params.q, room))


def forward(params: LinearParams, z: Array, attention: str = "linear") -> Array:
    """Predictions by the definition, layer by layer on the prompts themselves.

        Z_(l+1) = Z_l + (1/n) P_l Z_l M (Z_l^T Q_l Z_l),   M = diag(I_n, 0),   prediction = -[Z_L]_(d+1, n+1)

    The softmax variant takes the softmax of Z^T Q Z over the keys.

    Args:
      params: LinearParams.
      z: (d+1, n+1, B) prompts.
      attention: "linear" or "softmax".

    Returns:
      (B,).

    References:
      arXiv 2310.01082, linear transformer; the softmax variant as reconstructed in its place.
    """
    n = z.shape[1] - 1
    high = jax.lax.Precision.HIGHEST
    for p, q in zip(*whole(params, z.shape[0])):
        query = jnp.einsum("ij,jmb->imb", q, z, precision=high)
        score = jnp.einsum("ikb,imb->kmb", z, query, precision=high)  # key first
        if attention == "softmax":
            score = jax.nn.softmax(score, axis=0)
        moved = jnp.einsum("ikb,kmb->imb", z[:, :n], score[:n], precision=high)
        z = z + jnp.einsum("ij,jmb->imb", p, moved, precision=high) / n
    return -z[-1, -1]


def _times(a: Array, b: Array) -> Array:
    """Products of small matrices (i, k, B) and (k, j, B), prompt by prompt; a batched `dot` takes 5 times as long.

    Term by term like the Gram matrices: a sum over an axis, which XLA does not vectorise across prompts, takes twice as
    long.
    """
    return functools.reduce(jnp.add, (a[:, k, None] * b[None, k] for k in range(a.shape[1])))


def predict(params: LinearParams, prompts: Prompts) -> Array:
    """Predictions of the linear transformer, through (d+1) x (d+1) matrices only.

        G_0 = Z_0 M Z_0^T,   T_l = I + (1/n) P_l G_l Q_l,   Z_(l+1) = T_l Z_l,   G_(l+1) = T_l G_l T_l^T

    since P Z M (Z^T Q Z) = P (Z M Z^T) Q Z: the n context columns never appear again, and of the last column only its
    own d+1 numbers. Of the last layer only the label's row is needed.

    Args:
      params: LinearParams.
      prompts: Prompts.

    Returns:
      (B,).

    References:
      Derived here from the model of arXiv 2310.01082.
    """
    z = prompts.matrix()
    n = z.shape[1] - 1
    last = z[:, n]
    # Term by term: XLA's loop over the context is not vectorised across prompts.
    gram = functools.reduce(jnp.add, (z[:, None, i] * z[None, :, i] for i in range(n)))
    p, q = whole(params, z.shape[0])
    high = jax.lax.Precision.HIGHEST
    depth = p.shape[0]
    for layer in range(depth):
        # Weights multiply from the left, all prompts at once; G is symmetric, so that (G Q)_ij = sum_k Q_kj G_ki.
        right = jnp.einsum("kj,kib->jib", q[layer], gram, precision=high)
        if layer == depth - 1:
            row = jnp.einsum("i,jib->jb", p[layer][-1], right, precision=high)  # the label's row of P G Q
            return -(last[-1] + jnp.sum(row * last, axis=0) / n)
        move = jnp.einsum("ai,jib->ajb", p[layer], right, precision=high) / n  # T - I
        last = last + jnp.sum(move * last[None], axis=1)
        half = _times(move, gram)
        turned = jnp.swapaxes(half, 0, 1)
        gram = gram + half + turned + _times(half, jnp.swapaxes(move, 0, 1))
    raise AssertionError("depth >= 1")
