"""The transformer with residuals on one sequence, layer by layer, and the spectra of what flows through it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.residual.problem import ResidualHyper, ResidualProblem

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


class ResidualParams(NamedTuple):
    """Weights of all layers.

    Args:
      w_q: (depth, d, d) queries.
      w_k: (depth, d, d) keys.
      w_v: (depth, d, d) values.
      w_1: (depth, d, d_ff) first layer of the feed-forward network.
      w_2: (depth, d_ff, d) its second layer.
      w_u: (d, d_out) readout.
    """

    w_q: Array
    w_k: Array
    w_v: Array
    w_1: Array
    w_2: Array
    w_u: Array


class Flow(NamedTuple):
    """What flows through the layers.

    Args:
      values: (depth, n, d) X W_V, what attention averages.
      attention: (depth, n, d) H, the attention output with its residual.
      features: (n, d) Z of the last layer, what the readout sees.
      output: (n, d_out) F.
    """

    values: Array
    attention: Array
    features: Array
    output: Array


def init(key: Array, problem: ResidualProblem) -> ResidualParams:
    """Draws every weight i.i.d. N(0, 1/fan_in), fan_in the dimension that it acts on.

    Args:
      key: key of the stream "init".
      problem: shapes.

    Returns:
      ResidualParams.

    Examples:
      >>> init(jax.random.key(0), ResidualProblem(d=4, d_ff=6, depth=3)).w_2.shape
      (3, 6, 4)

    References:
      Reconstructed.
    """
    d, d_ff, depth = problem.d, problem.d_ff, problem.depth
    shapes = [(depth, d, d)] * 3 + [(depth, d, d_ff), (depth, d_ff, d), (d, problem.d_out)]
    keys = jax.random.split(key, len(shapes))
    return ResidualParams(*(jax.random.normal(k, s) / math.sqrt(s[-2]) for k, s in zip(keys, shapes)))


def forward(params: ResidualParams, x: Array, hyper: ResidualHyper) -> Flow:
    """Runs one sequence through all layers.

        S = softmax_row(X W_Q W_K^T X^T / (tau sqrt(d)))
        H = S X W_V + r_a X,   Z = ReLU(H W_1) W_2 + r_f H,   Z is the next layer's X;   F = Z W_U

    Args:
      params: ResidualParams.
      x: (n, d) tokens.
      hyper: r_a, r_f and tau, may be traced.

    Returns:
      Flow.

    References:
      arXiv 2506.05249 in our words; the written-out form is reconstructed.
    """
    values, attention = [], []
    for w_q, w_k, w_v, w_1, w_2 in zip(*params[:-1]):
        query, key, value = (jnp.matmul(x, w, precision=HIGHEST) for w in (w_q, w_k, w_v))
        score = jnp.matmul(query, key.T, precision=HIGHEST) / (hyper.temperature * math.sqrt(x.shape[1]))
        mixed = jnp.matmul(jax.nn.softmax(score, axis=1), value, precision=HIGHEST)
        h = mixed + hyper.attention_residual * x
        hidden = jax.nn.relu(jnp.matmul(h, w_1, precision=HIGHEST))
        x = jnp.matmul(hidden, w_2, precision=HIGHEST) + hyper.ffn_residual * h
        values.append(value)
        attention.append(h)
    output = jnp.matmul(x, params.w_u, precision=HIGHEST)
    return Flow(jnp.stack(values), jnp.stack(attention), x, output)


@jax.custom_batching.sequential_vmap
def _svd(a: Array) -> Array:
    """Batches are worked off one by one: on a CPU, a batch handed to LAPACK waits for workers of the very pool that it
    runs in, so that several devices lock each other up for good (jaxlib 0.10.2).
    """
    return jnp.linalg.svd(a, compute_uv=False)


def singular_values(a: Array) -> Array:
    """Singular values of one matrix, (n, d) -> (min(n, d),), in decreasing order; NaN of one that is not finite.

    Examples:
      >>> singular_values(jnp.array([[0.0, 2.0], [3.0, 0.0]])).tolist()
      [3.0, 2.0]
    """
    finite = jnp.all(jnp.isfinite(a))
    return jnp.where(finite, _svd(jnp.where(finite, a, 0)), jnp.nan)  # LAPACK prints a warning for every NaN


def condition_number(values: Array) -> Array:
    """How much longer a matrix makes some directions than others, kappa = sigma_max / sigma_min.

    Args:
      values: (..., r) singular values in decreasing order, of all r = min(n, d) directions.

    Returns:
      (...), in [1, inf]; above the inverse of the float's rounding it says no more than that.

    Examples:
      >>> float(condition_number(jnp.array([6.0, 3.0, 2.0])))
      3.0
    """
    return values[..., 0] / values[..., -1]


def stable_rank(values: Array) -> Array:
    """How many directions carry a matrix, ||A||_F^2 / ||A||_2^2.

    Args:
      values: (..., r) singular values in decreasing order.

    Returns:
      (...), in [1, r].

    Examples:
      >>> float(stable_rank(jnp.array([2.0, 2.0, 0.0])))
      2.0
    """
    return jnp.sum(values * values, axis=-1) / values[..., 0] ** 2
