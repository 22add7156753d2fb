"""Kernel attention as a Task: least squares on tokens, with the W_V optimum, curvature and landscape at test steps."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.analysis import curvature, landscape
from jaxsign.systems.kernels import data as source
from jaxsign.systems.kernels import model as model
from jaxsign.systems.kernels.data import Samples
from jaxsign.systems.kernels.model import KernelParams
from jaxsign.systems.kernels.problem import KernelHyper, KernelProblem
from jaxsign.training.task import Task

Array = jax.Array
DIMS = {"landscape": ("first", "second")}
ATTRS = {
    "train_loss": {"long_name": "training loss", "units": "1"},
    "train_ratio": {"long_name": "training loss / that of a zero output", "units": "1"},
    "gradient_norm": {"long_name": "norm of the gradient in W_Q", "units": "1"},
    "best_ratio": {"long_name": "least loss that W_V alone can reach / that of a zero output", "units": "1"},
    "value_rank": {"long_name": "dimension of the outputs that W_V alone can make", "units": "1"},
    "landscape": {"long_name": "training loss on a plane through W_Q", "units": "1"},
    "roughness": {"long_name": "excess variation of the landscape's lines", "units": "1"},
    "mean_curvature": {"long_name": "mean of the Hessian's diagonal in W_Q, tr H / size", "units": "1"},
    "robust_condition": {"long_name": "max / median of the Hessian's diagonal in W_Q", "units": "1"},
    "test_loss": {"long_name": "loss on fresh samples", "units": "1"},
    "test_ratio": {"long_name": "loss on fresh samples / that of a zero output", "units": "1"},
}


class Fresh(NamedTuple):
    """What the test steps look at.

    Args:
      samples: fresh Samples; None where targets are random and nothing carries over to fresh ones.
      plane: (2, *w_q.shape) orthonormal directions of the landscape.
    """

    samples: Samples | None
    plane: Array


@functools.cache
def kernel_attention(problem: KernelProblem) -> Task:
    """One layer of multi-head attention with a kernel, trained on squared error, full batch.

        L = (1/2N) sum_i ||MH(X_i) - y_i||^2

    Test steps measure what W_V alone could reach, the curvature and the landscape in W_Q, and the loss on fresh
    samples; what is not asked for costs nothing. The landscape's directions are drawn from the stream "test", so that
    kernels are seen along the same ones.

    Args:
      problem: a KernelProblem.

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if it is no KernelProblem.

    Examples:
      >>> import optax, jaxsign as js
      >>> task = kernel_attention(KernelProblem(samples=2, tokens=2, embed=6))
      >>> run = js.train(jax.random.key(0), task, KernelHyper(), optax.sgd(1.0), steps=20, trainable=("w_v",))
      >>> bool(run.trace["train_loss"][-1] < run.trace["train_loss"][0])
      True

    References:
      arXiv 2411.07538, "paper-inspired": its sizes and kernel constant are reconstructed.
    """
    if not isinstance(problem, KernelProblem):
        raise ValueError(f"problem must be a js.KernelProblem, got problem={problem!r}")

    def loss(params: KernelParams, batch: Samples, hyper: KernelHyper) -> Array:
        error = model.forward(params, batch.x, problem.kernel, model.constant(problem, hyper)) - batch.y
        return jnp.sum(error * error) / (2 * batch.x.shape[2])

    def ratio(value: Array, batch: Samples) -> Array:
        return value / (jnp.sum(batch.y * batch.y) / (2 * batch.x.shape[2]))

    def sample_test(key: Array, hyper: KernelHyper, shared: Any = None) -> Fresh:
        del shared
        fresh, plane = jax.random.split(key)
        carries = problem.targets != "random"
        samples = source.sample(fresh, problem, hyper, problem.n_test) if carries else None
        return Fresh(samples, landscape.directions(plane, (problem.heads, problem.embed, problem.d)))

    def observe(params: KernelParams, data: Samples, test: Fresh | None, hyper: KernelHyper) -> dict[str, Array]:
        def of_queries(w_q: Array) -> Array:
            return loss(params._replace(w_q=w_q), data, hyper)

        value, gradient = jax.value_and_grad(of_queries)(params.w_q)
        found = {
            "train_loss": value,
            "train_ratio": ratio(value, data),
            "gradient_norm": jnp.sqrt(jnp.sum(gradient * gradient)),
        }
        if test is None:
            return found
        best, rank = model.value_optimum(params, data, problem.kernel, model.constant(problem, hyper))
        plane = landscape.plane(of_queries, params.w_q, test.plane, problem.plane_points)
        diagonal = curvature.hessian_diagonal(of_queries, params.w_q)
        found |= {
            "best_ratio": best,
            "value_rank": rank,
            "landscape": plane,
            "roughness": landscape.roughness(plane),
            "mean_curvature": jnp.mean(diagonal),
            "robust_condition": curvature.robust_condition(diagonal.ravel()),
        }
        if test.samples is not None:
            fresh = loss(params, test.samples, hyper)
            found |= {"test_loss": fresh, "test_ratio": ratio(fresh, test.samples)}
        return found

    return Task(
        sample=lambda key, hyper, shared: source.sample(key, problem, hyper, problem.samples),
        init=lambda key, data, hyper: model.init(key, problem, hyper),
        loss=loss,
        observe=observe,
        sample_test=sample_test,
        validate=_check,
        dims=DIMS,
        attrs=ATTRS,
        problem=problem,
        name="kernel_attention",
    )


def _check(hyper: Any) -> None:
    if not isinstance(hyper, KernelHyper):
        raise ValueError(f"hyper must be a js.KernelHyper, got hyper={hyper!r}")
    hyper.validate()
