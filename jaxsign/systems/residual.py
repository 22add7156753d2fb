"""Attention with residuals (arXiv 2506.05249): do the singular values of its layers set the speed of training?

Softmax attention and a ReLU network fit one sequence with squared loss. In this order: the problem and its numbers,
tokens, the layers and their spectra, the Task.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.systems import system
from jaxsign.training.task import Task
from jaxsign.validation.values import instance, positive_int, real

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class ResidualProblem:
    """Everything that fixes the shapes of a transformer with residuals on one sequence. Frozen and hashable.

    Args:
      n: tokens, the rows of X, int >= 1; the contraction bound is not trivial for n <= d.
      d: dimension of a token and of the residual stream, int >= 1.
      d_ff: hidden units of the feed-forward network, int >= 1.
      d_out: outputs of a token, int >= 1.
      depth: layers, each of attention and feed-forward network, int >= 1.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> ResidualProblem(n=24).ranks
      24

    References:
      The model described by arXiv 2506.05249; the sizes are reconstructed.
    """

    n: int = 16
    d: int = 32
    d_ff: int = 64
    d_out: int = 8
    depth: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, positive_int(field.name, getattr(self, field.name)))

    @property
    def ranks(self) -> int:
        """Singular values of a token matrix, min(n, d)."""
        return min(self.n, self.d)


@dataclasses.dataclass(frozen=True)
class ResidualHyper:
    """The system's numbers, swept without recompiling: a pytree whose leaves may be traced.

    Args:
      attention_residual: weight of the residual around the attention of every layer, finite; 1 with, 0 without.
      ffn_residual: the same around every feed-forward network.
      temperature: divides the attention scores beside sqrt(d), finite, > 0; high ones make attention uniform.

    Examples:
      >>> ResidualHyper(ffn_residual=0.0).temperature
      1.0

    References:
      arXiv 2506.05249; weights and temperature are ours, to ablate the residuals and the softmax one by one.
    """

    attention_residual: Any = 1.0
    ffn_residual: Any = 1.0
    temperature: Any = 1.0

    def validate(self) -> None:
        """Checks every number on the host.

        Raises:
          ValueError: naming field, value and legal range.
        """
        for name in ("attention_residual", "ffn_residual"):
            for number in np.ravel(getattr(self, name)).tolist():
                real(name, number)
        for number in np.ravel(self.temperature).tolist():
            real("temperature", number, low=0.0, open_low=True)


jax.tree_util.register_dataclass(
    ResidualHyper, data_fields=["attention_residual", "ffn_residual", "temperature"], meta_fields=[]
)


class Tokens(NamedTuple):
    """A sequence and the targets that it is fitted to.

    Args:
      x: (n, d) tokens X.
      y: (n, d_out) targets Y.
    """

    x: Array
    y: Array


def sample(key: Array, problem: ResidualProblem) -> Tokens:
    """Draws tokens of length about 1 and targets that are independent of them.

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
    """Intermediate results of the layers, and the output.

    Args:
      values: (depth, n, d) X W_V, which attention averages.
      attention: (depth, n, d) H, the attention output with its residual.
      features: (n, d) Z of the last layer, the input of the readout.
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
      The model described by arXiv 2506.05249; the written-out form is reconstructed.
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
    """Singular values, one matrix of a batch after the other. On a CPU, LAPACK on a batch waits for workers of the pool
    that it runs in, so that several devices deadlock (jaxlib 0.10.2).
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
    """Ratio of the largest to the smallest stretch of a vector by a matrix, kappa = sigma_max / sigma_min.

    Args:
      values: (..., r) singular values in decreasing order, of all r = min(n, d) directions.

    Returns:
      (...), in [1, inf]; a number above 1 / (rounding of the floats) means only that kappa is at least that large.

    Examples:
      >>> float(condition_number(jnp.array([6.0, 3.0, 2.0])))
      3.0
    """
    return values[..., 0] / values[..., -1]


def stable_rank(values: Array) -> Array:
    """The number of directions that dominate a matrix, ||A||_F^2 / ||A||_2^2.

    Args:
      values: (..., r) singular values in decreasing order.

    Returns:
      (...), in [1, r].

    Examples:
      >>> float(stable_rank(jnp.array([2.0, 2.0, 0.0])))
      2.0
    """
    return jnp.sum(values * values, axis=-1) / values[..., 0] ** 2


DIMS = {
    "attention_singular_values": ("layer", "index"),
    "attention_sigma_min": ("layer",),
    "attention_condition": ("layer",),
    "attention_stable_rank": ("layer",),
    "value_condition": ("layer",),
    "feature_singular_values": ("index",),
}
ATTRS = {
    "train_loss": {"long_name": "training loss, half the summed squares", "units": "1"},
    "gradient_norm": {"long_name": "norm of the gradient", "units": "1"},
    "attention_singular_values": {"long_name": "singular values of H", "units": "1"},
    "attention_sigma_min": {"long_name": "smallest singular value of H", "units": "1"},
    "attention_condition": {"long_name": "condition number of H", "units": "1"},
    "attention_stable_rank": {"long_name": "stable rank of H", "units": "1"},
    "value_condition": {"long_name": "condition number of X W_V", "units": "1"},
    "feature_singular_values": {"long_name": "singular values of Z", "units": "1"},
    "feature_sigma_min": {"long_name": "smallest singular value of Z", "units": "1"},
    "feature_condition": {"long_name": "condition number of Z", "units": "1"},
    "feature_stable_rank": {"long_name": "stable rank of Z", "units": "1"},
    "contraction": {"long_name": "L(t) / L(t-1)", "units": "1"},
    "sigma_before": {"long_name": "n-th singular value of Z where the last step began", "units": "1"},
    "step_curvature": {"long_name": "mean curvature along the last step", "units": "1"},
}


def _loss(params: ResidualParams, data: Tokens, hyper: ResidualHyper) -> Array:
    error = forward(params, data.x, hyper).output - data.y
    return jnp.sum(error * error) / 2


def _inner(a: ResidualParams, b: ResidualParams) -> Array:
    return sum((jnp.vdot(u, v) for u, v in zip(a, b)), start=jnp.zeros(()))


@system(ResidualProblem, ResidualHyper)
@functools.cache
def residual_attention(problem: ResidualProblem) -> Task:
    """A transformer with residuals that fits one sequence: how its spectra set the speed of gradient descent.

        L = 1/2 ||F - Y||_F^2,   F = Z W_U,   grad_(W_U) L = Z^T R,   R = F - Y

    The bound. With this scaling of the loss (half the sum, not the mean: a mean over N divides every rate by N), with
    s the n-th singular value of Z (0 if n > d) and all weights trained by gradient flow, wherever L is differentiable

        dL/dt = -||grad L||^2 <= -||Z^T R||_F^2 <= -s^2 ||R||_F^2 = -2 s^2 L

    since the gradient of the readout is a part of the full gradient. A step of gradient descent, u = -eta grad L, obeys

        L(t+1) = L(t) - eta ||grad L||^2 + 1/2 c eta^2 ||grad L||^2,   c = 2 (L(t+1) - L(t) - <grad L, u>) / ||u||^2

    which defines its mean curvature c, changes of ReLUs on the way included. So, exactly and for each single step,

        L(t+1) <= (1 - 2 (1 - eta c / 2) eta s^2) L(t)   if eta c <= 2,   hence
        L(t+1) <= (1 - eta s^2) L(t)                     if eta c <= 1

    This defines "small eta": no fixed eta is safe in advance, since c depends on the parameters. The gradient of W_U
    alone gives the decrease to first order only, since the other weights change Z at the same time. If W_U alone is
    trained, c <= sigma_max(Z)^2, so that eta <= 1/sigma_max(Z)^2 is enough; the rate is then at best 1/kappa(Z)^2.

    The observables `contraction` (L(t+1) / L(t)), `sigma_before` (s where the step began) and `step_curvature` (c)
    belong to the update that led to a recorded step. They are meaningless where L is close to its rounding.

    Args:
      problem: a ResidualProblem.

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if it is no ResidualProblem.

    Examples:
      >>> import optax, jaxsign as js
      >>> task = residual_attention(ResidualProblem(n=3, d=4, d_ff=5, d_out=2, depth=2))
      >>> run = js.train(jax.random.key(0), task, ResidualHyper(), optax.sgd(1e-2), steps=20, record=10)
      >>> run.trace["attention_condition"].shape
      (3, 2)

    References:
      arXiv 2506.05249 for the statement that the singular values set the rate; the bound as written is derived here,
      by the argument of Polyak and Lojasiewicz.
    """
    instance("problem", problem, ResidualProblem)

    def observe(params: ResidualParams, data: Tokens, test: Any, hyper: ResidualHyper) -> dict[str, Array]:
        del test
        flow = forward(params, data.x, hyper)
        gradient = jax.grad(_loss)(params, data, hyper)
        attention, values = (jax.vmap(singular_values)(a) for a in (flow.attention, flow.values))
        features = singular_values(flow.features)
        return {
            "train_loss": _loss(params, data, hyper),
            "gradient_norm": jnp.sqrt(_inner(gradient, gradient)),
            "attention_singular_values": attention,
            "attention_sigma_min": attention[:, -1],
            "attention_condition": condition_number(attention),
            "attention_stable_rank": stable_rank(attention),
            "value_condition": condition_number(values),
            "feature_singular_values": features,
            "feature_sigma_min": features[-1],
            "feature_condition": condition_number(features),
            "feature_stable_rank": stable_rank(features),
        }

    def observe_step(params: ResidualParams, before: Any, data: Tokens, hyper: ResidualHyper) -> dict[str, Array]:
        start, gradient = jax.value_and_grad(_loss)(before, data, hyper)
        end = _loss(params, data, hyper)
        move = ResidualParams(*map(jnp.subtract, params, before))
        values = singular_values(forward(before, data.x, hyper).features)
        return {
            "contraction": end / start,
            "sigma_before": values[-1] if problem.n <= problem.d else jnp.zeros_like(values[-1]),
            "step_curvature": 2 * (end - start - _inner(gradient, move)) / _inner(move, move),
        }

    return Task(
        sample=lambda key, hyper, shared: sample(key, problem),
        init=lambda key, data, hyper: init(key, problem),
        loss=_loss,
        observe=observe,
        observe_step=observe_step,
        validate=lambda hyper: instance("hyper", hyper, ResidualHyper).validate(),
        dims=DIMS,
        attrs=ATTRS,
        problem=problem,
        name="residual_attention",
    )
