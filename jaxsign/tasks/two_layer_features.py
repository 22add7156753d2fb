"""The paper's system in feature space as a Task: from the dense draws of a seed, or drawn in law."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign import observables
from jaxsign.data import in_law, signal_noise
from jaxsign.models import law_features, two_layer
from jaxsign.models.feature_gradient import value_and_gradient
from jaxsign.models.two_layer_features import FeatureData, FeatureParams, to_features
from jaxsign.problem import Hyper, Problem, field_names
from jaxsign.task import Padding, Task
from jaxsign.tasks.two_layer import check_hyper, settled

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class CountedHyper(Hyper):
    """Numbers of a padded problem: the system's, and how many of the n examples there are.

    Args:
      count: number of examples, in [1, n]; may be traced.
    """

    count: Any = None


jax.tree_util.register_dataclass(CountedHyper, data_fields=field_names(CountedHyper), meta_fields=[])


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
    return _engine("feature_space", problem)


def feature_space_law(problem: Problem) -> Task:
    """The same system drawn in law: equal to the others in distribution only, at a cost that does not depend on d.

    Args:
      problem: shapes with supports="disjoint".

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if supports may share coordinates.

    References:
      Derived here from the model of arXiv 2410.04870.
    """
    return _engine("feature_space_law", problem)


@functools.cache
def _engine(engine: str, problem: Problem) -> Task:
    """A feature-space task of n examples, run by the program of the next power of two."""
    if problem.supports != "disjoint":
        raise ValueError(
            f'engine="{engine}" needs supports="disjoint", got supports={problem.supports!r}: where patches share '
            'coordinates the dynamics do not close on inner products; use engine="support"'
        )
    # All that the program depends on: what n does beside its number of slots is data.
    shapes = dataclasses.replace(problem, n=1, batch_size=None)
    own, n = functools.partial(_slots, engine, shapes, batch_size=problem.batch_size), problem.n

    def case(hyper: Hyper) -> CountedHyper:
        return CountedHyper(**{name: getattr(hyper, name) for name in field_names(Hyper)}, count=float(n))

    return dataclasses.replace(
        own(n, full=True),
        validate=lambda hyper: check_hyper(hyper, problem),
        padding=Padding(own(1 << (n - 1).bit_length(), full=False), case, {"sample": n}),
        problem=problem,
    )


@functools.cache
def _slots(engine: str, shapes: Problem, size: int, *, full: bool, batch_size: int | None) -> Task:
    """The task with `size` slots for examples.

    Args:
      engine: "feature_space" or "feature_space_law".
      shapes: the problem, its n aside.
      size: slots for examples.
      full: whether all are filled; otherwise hyper.count says how many.
      batch_size: examples of a mini-batch, or None.
    """

    def room(hyper: Any) -> signal_noise.Room:
        return signal_noise.Room(size, size if full else hyper.count)

    def loss(params: FeatureParams, batch: FeatureData, hyper: Any) -> Array:
        del hyper
        logits = two_layer.logits(params.features(batch), batch.y_clean * batch.mu, params.heads)
        return jnp.sum(batch.weight * two_layer.logistic_loss(batch.y * logits))

    def gradient(params: FeatureParams, batch: FeatureData, hyper: Any, signs: bool) -> tuple[Array, FeatureParams]:
        del hyper
        return value_and_gradient(params, batch, signs)

    def alarm(params: FeatureParams, batch: FeatureData, hyper: Any, seen: FeatureParams | None) -> Array:
        del hyper
        noise = seen.w_q.noise if seen is not None else None  # None also where the queries are not trained
        return jnp.zeros((), bool) if noise is None else observables.query_gradient_underflows(params, batch, noise)

    draw, draw_test, init, prepare = _in_law(shapes, room) if engine == "feature_space_law" else _dense(shapes, room)
    return Task(
        sample=draw,
        sample_test=draw_test,
        init=init,
        prepare=prepare,
        loss=loss,
        # The closed form is that of one noise patch; more of them differentiate, and may underflow in 32 bits.
        gradient=gradient if shapes.context == 2 else None,
        batch=None if batch_size is None else lambda key, data, hyper: signal_noise.mini_batch(key, batch_size, data),
        observe=lambda params, data, test, hyper: observables.observe(params, data, test),
        describe=lambda data, test, hyper: observables.noise_norms(data),
        scale=lambda data, hyper: data.scale(shapes.heads),
        homogeneous=True,
        watch={"first_frozen_step": alarm},
        dims=observables.dims(shapes.context),
        attrs=observables.ATTRS,
        name=f"two_layer_{engine}",
    )


Draws = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], Callable[..., Any]]


def _dense(shapes: Problem, room: Callable[[Any], signal_noise.Room]) -> Draws:
    """`sample`, `sample_test`, `init` and `prepare` that map the dense draws of a seed to feature space."""

    def prepare(data: Any, test: Any, params: Any, hyper: Any, degree: Array) -> tuple[Any, Any, Any]:
        del hyper
        return to_features(data, settled(shapes, data, test), params, degree, shapes.overlap == "exact")

    return (
        lambda key, hyper, shared=None: signal_noise.sample(key, shapes, hyper, room(hyper)),
        lambda key, hyper, shared=None: signal_noise.sample_test(key, shapes, hyper, room(hyper)),
        lambda key, data, hyper: two_layer.init(key, shapes, hyper),
        prepare,
    )


def _in_law(shapes: Problem, room: Callable[[Any], signal_noise.Room]) -> Draws:
    """`sample`, `sample_test`, `init` and `prepare` that draw the features in law."""

    def prepare(data: Any, test: Any, params: Any, hyper: Any, degree: Array) -> tuple[Any, Any, Any]:
        return law_features.to_features(data, test, params, shapes, hyper, degree)

    return (
        lambda key, hyper, shared=None: in_law.sample(key, shapes, hyper, room(hyper)),
        lambda key, hyper, shared=None: in_law.sample_test(key, shapes, hyper, room(hyper)),
        lambda key, data, hyper: law_features.init(key, shapes, data, hyper),
        prepare,
    )
