"""Linear attention on in-context regression as a Task: fresh prompts at every step, curvature among the observables."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.analysis import curvature
from jaxsign.systems.linear_attention import data as regression
from jaxsign.systems.linear_attention import model as model
from jaxsign.systems.linear_attention.data import Prompts
from jaxsign.systems.linear_attention.model import LinearParams
from jaxsign.systems.linear_attention.problem import RegressionHyper, RegressionProblem
from jaxsign.training.task import Task

Array = jax.Array
DIMS = {"gradient_noise": ("draw",)}
ATTRS = {
    "train_loss": {"long_name": "squared error on the fixed evaluation prompts", "units": "1"},
    "gradient_norm": {"long_name": "gradient norm on the evaluation prompts", "units": "1"},
    "robust_condition": {"long_name": "max / median of the Hessian's diagonal", "units": "1"},
    "robust_condition_eigen": {"long_name": "max / median of the Hessian's eigenvalues", "units": "1"},
    "directional_smoothness": {"long_name": "curvature along the last step, where it began", "units": "1"},
    "gradient_before": {"long_name": "gradient norm where the last step began", "units": "1"},
    "gradient_noise": {"long_name": "||g_B - g|| of fresh batches", "units": "1"},
}


def _loss(params: LinearParams, prompts: Prompts, attention: str) -> Array:
    if attention == "linear":
        found = model.predict(params, prompts)
    else:
        found = model.forward(params, prompts.matrix(), attention)
    error = found - prompts.target
    return jnp.mean(error * error)


def _norm(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))


@functools.cache
def linear_attention(problem: RegressionProblem) -> Task:
    """A linear transformer that learns to regress in context, on fresh prompts at every step.

        f = E (prediction - <x_(n+1), w*>)^2

    Losses and curvature are measured on `n_eval` prompts that are never trained on; the observable `train_loss` is the
    loss there. Condition numbers, and with `noise_draws` the noise of the gradients of fresh batches, are measured at
    the test steps.

    Args:
      problem: a RegressionProblem.

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if it is no RegressionProblem.

    Examples:
      >>> import jaxsign as js
      >>> task = js.linear_attention(js.RegressionProblem(d=2, n_context=4, depth=1, batch_size=8, n_eval=8))
      >>> run = js.train(jax.random.key(0), task, js.RegressionHyper(), js.sign_gd(1e-2), steps=20, record=10)
      >>> run.trace["directional_smoothness"].shape
      (3,)

    References:
      arXiv 2310.01082.
    """
    if not isinstance(problem, RegressionProblem):
        raise ValueError(f"problem must be a js.RegressionProblem, got problem={problem!r}")

    def loss(params: LinearParams, batch: Prompts, hyper: RegressionHyper) -> Array:
        del hyper
        return _loss(params, batch, problem.attention)

    def sample(key: Array, hyper: RegressionHyper, shared: Any = None) -> Prompts:
        del shared
        return regression.sample(key, problem, hyper, problem.n_eval)

    def noise_key(key: Array, hyper: RegressionHyper, shared: Any = None) -> Array:
        """There is no test set but the key of the batches whose gradient noise is measured."""
        del hyper, shared
        return jax.random.key_data(key)

    def fresh(key: Array, data: Prompts, hyper: RegressionHyper) -> Prompts:
        del data
        return regression.sample(key, problem, hyper, problem.batch_size)

    def noise_norms(params: LinearParams, words: Array, hyper: RegressionHyper) -> Array:
        means, draws = jax.random.split(jax.random.wrap_key_data(words, impl="threefry2x32"))

        def gradient(key: Array) -> LinearParams:
            return jax.grad(loss)(params, regression.sample(key, problem, hyper, problem.batch_size), hyper)

        many = jax.random.split(means, -(-problem.noise_mean // problem.batch_size))
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), jax.lax.map(gradient, many))
        return curvature.gradient_noise(gradient, mean, draws, problem.noise_draws)

    def observe(params: LinearParams, data: Prompts, test: Any, hyper: RegressionHyper) -> dict[str, Array]:
        def here(p: LinearParams) -> Array:
            return loss(p, data, hyper)

        value, gradient = jax.value_and_grad(here)(params)
        found = {"train_loss": value, "gradient_norm": _norm(gradient)}
        if test is not None:  # costly, so at test steps only
            few = jax.tree.map(lambda x: x[..., : problem.n_hessian], data)
            full = curvature.hessian(lambda p: loss(p, few, hyper), params)
            found["robust_condition"] = curvature.robust_condition(jnp.diagonal(full))
            found["robust_condition_eigen"] = curvature.robust_condition(curvature.eigenvalues(full))
            if problem.noise_draws:
                found["gradient_noise"] = noise_norms(params, test, hyper)
        return found

    def observe_step(params: LinearParams, before: Any, data: Prompts, hyper: RegressionHyper) -> dict[str, Array]:
        def here(p: LinearParams) -> Array:
            return loss(p, data, hyper)

        move = jax.tree.map(jnp.subtract, params, before)
        return {
            "directional_smoothness": curvature.directional_smoothness(here, before, move),
            "gradient_before": _norm(jax.grad(here)(before)),
        }

    return Task(
        sample=sample,
        init=lambda key, data, hyper: model.init(key, problem, hyper),
        loss=loss,
        batch=fresh,
        observe=observe,
        observe_step=observe_step,
        sample_test=noise_key,
        validate=_check,
        dims=DIMS,
        attrs=ATTRS,
        problem=problem,
        name="linear_attention",
    )


def _check(hyper: Any) -> None:
    if not isinstance(hyper, RegressionHyper):
        raise ValueError(f"hyper must be a js.RegressionHyper, got hyper={hyper!r}")
    hyper.validate()
