"""The two-layer system as a Task: the engines that train all coordinates, or those that training patches use."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer import data as signal_noise
from jaxsign.systems.two_layer import model as model
from jaxsign.systems.two_layer import observables, underflow
from jaxsign.systems.two_layer.data import TestSet, TrainingSet
from jaxsign.systems.two_layer.problem import Hyper, Problem
from jaxsign.training.task import Reduction, Task
from jaxsign.validation.values import instance

Array = jax.Array


@functools.cache
def dense(problem: Problem) -> Task:
    """The two-layer transformer on signal + sparse-noise data, all d coordinates trained.

        L = mean_i log(1 + exp(-y_i F(W, X_i)))

    Args:
      problem: shapes, supports and the overlap law of the test noise.

    Returns:
      The Task; equal problems give the identical object.

    References:
      arXiv 2410.04870, model, data and loss.
    """

    def sample(key: Array, hyper: Hyper, shared: Any = None) -> TrainingSet:
        del shared
        return signal_noise.sample(key, problem, hyper)

    def sample_test(key: Array, hyper: Hyper, shared: Any = None) -> TestSet:
        del shared
        return signal_noise.sample_test(key, problem, hyper)

    def init(key: Array, data: TrainingSet, hyper: Hyper) -> model.Params:
        del data
        return model.init(key, problem, hyper)

    def prepare(data: Any, test: Any, params: Any, hyper: Hyper, degree: Any) -> tuple[Any, Any, Any]:
        del hyper, degree
        return data, with_coordinates(problem, data, test), params

    def loss(params: observables.AnyParams, batch: Any, hyper: Hyper) -> Array:
        sign_mu = batch.y_clean * batch.mu
        logits = model.logits(params.features(batch), sign_mu, params.heads, problem.kernel, hyper.residual)
        return jnp.sum(batch.weight * model.logistic_loss(batch.y * logits))

    def observe(params: observables.AnyParams, data: Any, test: Any, hyper: Hyper) -> dict[str, Array]:
        return observables.observe(params, data, test, problem.kernel, hyper.residual)

    def alarm(params: model.AnyWeights, batch: Any, hyper: Hyper, gradient: Any) -> dict[str, Array]:
        weighted = jnp.repeat(batch.weight > 0, batch.support.shape[1])[:, None]
        used = jnp.any((params.columns(batch.basis)[1:, 1:] != 0) & weighted, 0)
        value = params.value()
        matrices = [_matrix(getattr(gradient, name), w) for name, w in (("w_q", params.query()), ("w_k", params.key()))]
        matrices.append(_matrix(gradient.w_v, value))
        tie = jnp.max(jnp.abs(value)) < jnp.finfo(value.dtype).eps  # margins may all be 0
        return underflow.frozen(matrices, used, tie, problem.kernel, hyper.residual)

    return Task(
        sample=sample,
        sample_test=sample_test,
        init=init,
        prepare=prepare,
        loss=loss,
        observe=observe,
        describe=lambda data, test, hyper: observables.noise_norms(data),
        watch=underflow.alarms(alarm),
        batch=mini_batches(problem.batch_size),
        validate=lambda hyper: check_hyper(hyper, problem),
        dims=observables.dims(problem.context),
        attrs=observables.ATTRS,
        problem=problem,
        name="two_layer",
        reduction=Reduction(
            compact=lambda params, data: model.tie(params),
            expand=lambda params: params.full(),
            frozen=("v_start", "w_v_start"),
            project=model.seen,
        ),
    )


@functools.cache
def support(problem: Problem) -> Task:
    """The dense system, trained on the coordinates that some training patch uses (at most n*(context-1)*s + 1).

    All other coordinates have gradient 0 at every step, so this is exact for every optimizer that moves a coordinate by
    its own gradients and by decoupled weight decay only. A numeric probe of the optimizer decides; other optimizers are
    refused. Test metrics and final parameters are those of the full model.

    Args:
      problem: shapes, supports and the overlap law of the test noise.

    Returns:
      The Task; equal problems give the identical object.

    References:
      Derived here from the model of arXiv 2410.04870.
    """
    full = dense(problem)
    reduction = dataclasses.replace(
        full.reduction,
        compact=model.activate,
        compact_only=True,
        compact_decays=True,
        frozen=("v_start", "active", "start"),
    )
    return dataclasses.replace(full, reduction=reduction, name="two_layer_support")


def with_weights(problem: Problem) -> Task:
    """The task that trains the fewest weights of a problem: `support`, or `dense` where every coordinate is active."""
    return support(problem) if problem.n * problem.patches * problem.s + 1 < problem.d else dense(problem)


def _matrix(gradient: Any, weights: Array) -> underflow.MatrixGradient:
    """The gradient of a matrix of any form; of W_V one row, since the others have the same gradient up to its sign."""
    leaves, nonzero = jax.tree.leaves(gradient), jnp.any(weights[..., 0] != 0)
    if not leaves:
        return underflow.MatrixGradient(None, None, nonzero)
    rows = leaves[0] if weights.ndim == 2 else leaves[0].reshape(-1, weights.size)[:1]
    return underflow.MatrixGradient(rows[:, 1:], rows[:, 0], nonzero)


def check_hyper(hyper: Any, problem: Problem) -> None:
    """Raises ValueError if `hyper` is no Hyper or has a number outside its range."""
    instance("hyper", hyper, Hyper).validate(problem)


def mini_batches(size: int | None) -> Callable[[Array, Any, Any], Any] | None:
    """`batch` of a Task with mini-batches of this size; None: full batches."""
    return None if size is None else lambda key, data, hyper: signal_noise.mini_batch(key, size, data)


def with_coordinates(problem: Problem, data: TrainingSet, test: TestSet) -> TestSet:
    """The test set with coordinates in place of ranks, which only overlap="none" draws."""
    return signal_noise.assign_coordinates(test, data) if problem.overlap == "none" else test
