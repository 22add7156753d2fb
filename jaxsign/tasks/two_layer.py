"""The paper's system as a Task, one for each engine."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign import observables
from jaxsign.data import signal_noise
from jaxsign.models import two_layer as model
from jaxsign.models.two_layer_features import FeatureData, FeatureParams, FeatureTest, to_features
from jaxsign.problem import Hyper, Problem
from jaxsign.task import Task

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

    def sample(key: Array, hyper: Hyper, shared: Any = None) -> signal_noise.Dataset:
        del shared
        return signal_noise.sample(key, problem, hyper)

    def sample_test(key: Array, hyper: Hyper, shared: Any = None) -> signal_noise.TestSet:
        del shared
        return signal_noise.sample_test(key, problem, hyper)

    def init(key: Array, data: signal_noise.Dataset, hyper: Hyper) -> model.Params:
        del data
        return model.init(key, problem, hyper)

    def prepare(data: Any, test: Any, params: Any, hyper: Hyper, degree: Any) -> tuple[Any, Any, Any]:
        del hyper, degree
        return data, _settled(problem, data, test), params

    def loss(params: observables.AnyParams, batch: Any, hyper: Hyper) -> Array:
        del hyper
        logits = model.logits(params.features(batch), batch.y_clean * batch.mu, params.heads)
        return jnp.mean(model.logistic_loss(batch.y * logits))

    def observe(params: observables.AnyParams, data: Any, test: Any, hyper: Hyper) -> dict[str, Array]:
        del hyper
        return observables.observe(params, data, test)

    def validate(hyper: Any) -> None:
        if not isinstance(hyper, Hyper):
            raise ValueError(f"hyper must be a js.Hyper, got hyper={hyper!r}")
        hyper.validate(problem)

    return Task(
        sample=sample,
        sample_test=sample_test,
        init=init,
        prepare=prepare,
        loss=loss,
        observe=observe,
        describe=lambda data, test, hyper: observables.noise_norms(data),
        watch={"first_frozen_step": lambda params, batch, hyper: observables.query_gradient_underflows(params, batch)},
        compact=lambda params, data: model.tie(params),
        expand=lambda params: params.full(),
        frozen=("v_start", "w_v_start"),
        validate=validate,
        dims=observables.dims(problem.context),
        attrs=observables.ATTRS,
        name="two_layer",
    )


@functools.cache
def support(problem: Problem) -> Task:
    """The dense system, trained on the coordinates that some training patch uses (at most n*(context-1)*s + 1).

    All other coordinates have gradient 0 at every step, so this is exact for every optimizer that moves a coordinate by
    its own gradients only; a numeric probe decides, and others are refused. Test metrics and final parameters are the
    full model's.

    Args:
      problem: shapes, supports and the overlap law of the test noise.

    Returns:
      The Task; equal problems give the identical object.

    References:
      Derived here from the model of arXiv 2410.04870.
    """
    return dataclasses.replace(
        dense(problem),
        compact=model.activate,
        compact_only=True,
        frozen=("v_start", "active", "start"),
        name="two_layer_support",
    )


@functools.cache
def feature_space(problem: Problem) -> Task:
    """The dense system of the same seed, trained on its inner products with the patches: O(n*m_k) numbers a run.

        dense: w <- w + u(g_w)      here: <w,xi_i> <- <w,xi_i> + sum_j |xi_ij|^(1+p) u(dL/d<w,xi_i>)

    Exact where supports are disjoint and the transform u moves each coordinate by its own gradients, is odd and
    homogeneous of degree p in them; a numeric probe measures p, and others are refused. Decoupled weight decay stays
    exact. Parameters are FeatureParams.

    Args:
      problem: shapes with supports="disjoint".

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if supports may share coordinates.

    References:
      Derived here from the model of arXiv 2410.04870.
    """
    if problem.supports != "disjoint":
        raise ValueError(
            f'engine="feature_space" needs supports="disjoint", got supports={problem.supports!r}: where patches share '
            'coordinates the dynamics do not close on inner products; use engine="support"'
        )

    def prepare(
        data: Any, test: Any, params: Any, hyper: Hyper, degree: Array
    ) -> tuple[FeatureData, FeatureTest, FeatureParams]:
        del hyper
        return to_features(data, _settled(problem, data, test), params, degree, problem.overlap == "exact")

    return dataclasses.replace(
        dense(problem),
        prepare=prepare,
        scale=lambda data, hyper: data.scale(problem.heads),
        homogeneous=True,
        compact=None,
        expand=None,
        frozen=(),
        name="two_layer_feature_space",
    )


def _settled(problem: Problem, data: signal_noise.Dataset, test: signal_noise.TestSet) -> signal_noise.TestSet:
    return signal_noise.settle(test, data) if problem.overlap == "none" else test
