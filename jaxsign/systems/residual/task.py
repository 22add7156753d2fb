"""The transformer with residuals as a Task: one sequence, squared loss, the spectra behind its convergence."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.systems.residual import data as data_of
from jaxsign.systems.residual import model as model
from jaxsign.systems.residual.data import Tokens
from jaxsign.systems.residual.model import ResidualParams
from jaxsign.systems.residual.problem import ResidualHyper, ResidualProblem
from jaxsign.training.task import Task

Array = jax.Array
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
    error = model.forward(params, data.x, hyper).output - data.y
    return jnp.sum(error * error) / 2


def _inner(a: ResidualParams, b: ResidualParams) -> Array:
    return sum((jnp.vdot(u, v) for u, v in zip(a, b)), start=jnp.zeros(()))


@functools.cache
def residual_attention(problem: ResidualProblem) -> Task:
    """A transformer with residuals that fits one sequence: how its spectra set the speed of gradient descent.

        L = 1/2 ||F - Y||_F^2,   F = Z W_U,   grad_(W_U) L = Z^T R,   R = F - Y

    The bound. With this scaling of the loss (half the sum, not the mean: a mean over N divides every rate by N), with
    s the n-th singular value of Z (0 if n > d) and all weights trained by gradient flow, wherever L is differentiable

        dL/dt = -||grad L||^2 <= -||Z^T R||_F^2 <= -s^2 ||R||_F^2 = -2 s^2 L

    since the readout's gradient is a part of the whole one. A step of gradient descent, u = -eta grad L, obeys

        L(t+1) = L(t) - eta ||grad L||^2 + 1/2 c eta^2 ||grad L||^2,   c = 2 (L(t+1) - L(t) - <grad L, u>) / ||u||^2

    which defines its mean curvature c, changes of ReLUs on the way included. So, exactly and for each single step,

        L(t+1) <= (1 - 2 (1 - eta c / 2) eta s^2) L(t)   if eta c <= 2,   hence
        L(t+1) <= (1 - eta s^2) L(t)                     if eta c <= 1

    That is what "small eta" means: no fixed eta is safe beforehand, since c depends on where the step is taken. The W_U
    gradient alone gives the decrease to first order only, as the other weights move Z meanwhile. With W_U alone trained
    c <= sigma_max(Z)^2, so that eta <= 1/sigma_max(Z)^2 is enough; the rate is then 1/kappa(Z)^2 at best.

    The observables `contraction` (L(t+1) / L(t)), `sigma_before` (s where the step began) and `step_curvature` (c) are
    those of the step that led to a recorded one. Where L is close to its rounding they mean nothing.

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
    if not isinstance(problem, ResidualProblem):
        raise ValueError(f"problem must be a js.ResidualProblem, got problem={problem!r}")

    def observe(params: ResidualParams, data: Tokens, test: Any, hyper: ResidualHyper) -> dict[str, Array]:
        del test
        flow = model.forward(params, data.x, hyper)
        gradient = jax.grad(_loss)(params, data, hyper)
        attention, values = (jax.vmap(model.singular_values)(a) for a in (flow.attention, flow.values))
        features = model.singular_values(flow.features)
        return {
            "train_loss": _loss(params, data, hyper),
            "gradient_norm": jnp.sqrt(_inner(gradient, gradient)),
            "attention_singular_values": attention,
            "attention_sigma_min": attention[:, -1],
            "attention_condition": model.condition_number(attention),
            "attention_stable_rank": model.stable_rank(attention),
            "value_condition": model.condition_number(values),
            "feature_singular_values": features,
            "feature_sigma_min": features[-1],
            "feature_condition": model.condition_number(features),
            "feature_stable_rank": model.stable_rank(features),
        }

    def observe_step(params: ResidualParams, before: Any, data: Tokens, hyper: ResidualHyper) -> dict[str, Array]:
        start, gradient = jax.value_and_grad(_loss)(before, data, hyper)
        end = _loss(params, data, hyper)
        move = ResidualParams(*map(jnp.subtract, params, before))
        values = model.singular_values(model.forward(before, data.x, hyper).features)
        return {
            "contraction": end / start,
            "sigma_before": values[-1] if problem.n <= problem.d else jnp.zeros_like(values[-1]),
            "step_curvature": 2 * (end - start - _inner(gradient, move)) / _inner(move, move),
        }

    return Task(
        sample=lambda key, hyper, shared: data_of.sample(key, problem),
        init=lambda key, data, hyper: model.init(key, problem),
        loss=_loss,
        observe=observe,
        observe_step=observe_step,
        validate=_check,
        dims=DIMS,
        attrs=ATTRS,
        problem=problem,
        name="residual_attention",
    )


def _check(hyper: Any) -> None:
    if not isinstance(hyper, ResidualHyper):
        raise ValueError(f"hyper must be a js.ResidualHyper, got hyper={hyper!r}")
    hyper.validate()
