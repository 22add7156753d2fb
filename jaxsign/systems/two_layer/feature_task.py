"""The two-layer system in feature space as a Task: from the draws of a seed, some coordinates shared, or in law."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer import data as signal_noise
from jaxsign.systems.two_layer import feature_law, underflow
from jaxsign.systems.two_layer import model as two_layer
from jaxsign.systems.two_layer.feature_gradient import value_and_gradient
from jaxsign.systems.two_layer.features import FeatureData, FeatureParams, Inner, moving, to_features, weight_signs
from jaxsign.systems.two_layer.overlaps import shared_slots
from jaxsign.systems.two_layer.problem import Hyper, Problem
from jaxsign.systems.two_layer.task import check_hyper, dense, mini_batches, with_coordinates, with_weights
from jaxsign.training.task import Padding, Reduction, Task, WeightsOf
from jaxsign.validation.values import field_names

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class CountedHyper(Hyper):
    """Numbers of a padded problem: the system's, and the sizes that its program does not fix.

    Args:
      count: number of examples, in [1, n]; may be traced.
      d: (d // 2^16, d % 2^16) in a program for every d, since 32-bit floats do not hold all of d; else None.
    """

    count: Any = None
    d: Any = None


jax.tree_util.register_dataclass(CountedHyper, data_fields=field_names(CountedHyper), meta_fields=[])


@functools.cache
def feature_space(problem: Problem, law: bool = False) -> Task:
    """The dense system, trained on its inner products with the patches: O(n*m_k) numbers a run.

        dense: w <- w + u(g_w)      here: <w,xi_i> <- <w,xi_i> + sum_j |xi_ij|^(1+p) u(dL/d<w,xi_i>)

    Exact where supports are disjoint and the transform u moves each coordinate by its own gradients, is odd and
    homogeneous of degree p in them. A numeric probe measures p, and other optimizers are refused. Decoupled weight
    decay stays exact. Parameters are FeatureParams.

    Args:
      problem: shapes with supports="disjoint".
      law: draw the inner products themselves, at a cost that does not depend on d: equal in distribution only. False
        maps the dense draws of the same seed.

    Returns:
      The Task; equal arguments give the identical object.

    Raises:
      ValueError: if supports may share coordinates.

    References:
      Derived here from the model of arXiv 2410.04870.
    """
    name = "feature_space_law" if law else "feature_space"
    if problem.supports != "disjoint":
        raise ValueError(
            f'engine="{name}" needs supports="disjoint", got supports={problem.supports!r}: where patches share '
            'coordinates the dynamics do not close on inner products; use engine="hybrid"'
        )
    return _task(problem, name, law)


@functools.cache
def hybrid(problem: Problem) -> Task:
    """The dense system, trained on features of each patch's own coordinates and on the weights of shared coordinates.

        own:    <w,xi_i>_own <- <w,xi_i>_own + sum_(j own) |xi_ij|^(1+p) u(dL/d<w,xi_i>)
        shared: w_j <- w_j + u(sum_i xi_ij dL/d<w,xi_i>)

    Exact for all supports and the optimizers of `feature_space`, which it is where supports are disjoint. The weights
    have S slots, see `jaxsign.systems.two_layer.overlaps.shared_slots`; a seed whose shared coordinates do not fit,
    which is practically impossible, is NaN and diverged from step 0. Parameters are FeatureParams.

    Args:
      problem: shapes.

    Returns:
      The Task; equal problems give the identical object.

    References:
      Derived here from the model of arXiv 2410.04870.
    """
    return _task(problem, "hybrid", False)


def _task(problem: Problem, name: str, law: bool) -> Task:
    """A task in feature space, and the larger one that runs it where several n share a program."""
    # The program depends on n only through the number of slots; the true count is traced, and in law d is, too.
    n, shapes = problem.n, dataclasses.replace(problem, n=1, batch_size=None)
    every_d = dataclasses.replace(shapes, d=1 + problem.context * problem.s) if law else shapes
    d = tuple(map(float, divmod(problem.d, 1 << 16))) if law else None

    def case(hyper: Hyper) -> CountedHyper:
        return CountedHyper(**{name: getattr(hyper, name) for name in field_names(Hyper)}, count=float(n), d=d)

    task = _slots(shapes, name, law, n, full=True, batch_size=problem.batch_size)
    larger = _slots(every_d, name, law, 1 << (n - 1).bit_length(), full=False, batch_size=problem.batch_size)
    padding = Padding(larger, case, {"sample": n})
    weights = None  # in law none are drawn
    if not law:
        slots = shared_slots(problem, n * problem.patches)
        weights = WeightsOf(with_weights(problem), functools.partial(weight_signs, slots=slots))
    return dataclasses.replace(
        task,
        validate=lambda hyper: check_hyper(hyper, problem),
        problem=problem,
        reduction=dataclasses.replace(task.reduction, padding=padding, weights=weights),
    )


@functools.cache
def _slots(shapes: Problem, name: str, law: bool, size: int, *, full: bool, batch_size: int | None) -> Task:
    """The task with `size` slots for examples.

    Args:
      shapes: the problem, its n and batch_size aside; in law and not full, its d aside as well.
      name: of the engine.
      law: whether features are drawn in distribution.
      size: slots for examples.
      full: whether all slots hold an example; otherwise hyper.count says how many do, and hyper.d what d is.
      batch_size: examples of a mini-batch, or None.
    """
    shared = shared_slots(shapes, size * shapes.patches)

    def room(hyper: Any) -> signal_noise.PaddedSize:
        if full:
            return signal_noise.PaddedSize(size, size, shapes.d)
        if hyper.d is None:
            return signal_noise.PaddedSize(size, hyper.count, shapes.d)
        coarse, fine = (jnp.asarray(part).astype(jnp.int32) for part in hyper.d)
        return signal_noise.PaddedSize(size, hyper.count, (coarse << 16) + fine)

    def prepare(data: Any, test: Any, params: Any, hyper: Any, degree: Array) -> tuple[Any, Any, Any]:
        if law:
            return feature_law.to_features(data, test, params, shapes, hyper, degree)
        overlap, test = shapes.overlap == "exact", with_coordinates(shapes, data, test)
        return to_features(data, test, params, degree, overlap, shared)

    def init(key: Array, data: Any, hyper: Any) -> Any:
        return feature_law.init(key, shapes, data, hyper) if law else two_layer.init(key, shapes, hyper)

    def gradient(params: FeatureParams, batch: FeatureData, hyper: Any, signs: bool) -> tuple[Array, FeatureParams]:
        return value_and_gradient(params, batch, signs, hyper.residual)

    # The closed form needs softmax and one noise patch; automatic differentiation, which may underflow, does the rest.
    closed = shapes.context == 2 and shapes.kernel == "softmax"

    def alarm(
        params: FeatureParams, batch: FeatureData, hyper: Any, gradient: FeatureParams | None
    ) -> dict[str, Array]:
        if gradient is None:  # only signs are computed, from logarithms
            return dict.fromkeys(underflow.QUANTITIES, jnp.zeros((), bool))
        used, value = jnp.repeat(batch.weight > 0, shapes.patches), params.w_v
        if batch.shared is not None:
            used = jnp.concatenate([used, jnp.any((batch.shared != 0) & used[:, None], 0)])
        matrices = [
            _matrix(slope, weights)
            for slope, weights in zip((gradient.w_q, gradient.w_k, gradient.w_v), (params.w_q, params.w_k, value))
        ]
        largest = jnp.maximum(jnp.max(jnp.abs(moving(value))), jnp.abs(value.signal))
        tie = largest < jnp.finfo(largest.dtype).eps  # margins may all be 0
        return underflow.frozen(matrices, used, tie, shapes.kernel, hyper.residual)

    def sample(key: Array, hyper: Any, shared: Any = None) -> Any:
        return (feature_law if law else signal_noise).sample(key, shapes, hyper, room(hyper))

    def sample_test(key: Array, hyper: Any, shared: Any = None) -> Any:
        return (feature_law if law else signal_noise).sample_test(key, shapes, hyper, room(hyper))

    return dataclasses.replace(
        dense(shapes),
        sample=sample,
        sample_test=sample_test,
        init=init,
        prepare=prepare,
        gradient=gradient if closed else None,
        batch=mini_batches(batch_size),
        scale=lambda data, hyper: data.scale(shapes.heads),
        watch=underflow.alarms(alarm),
        validate=None,
        problem=None,
        name=f"two_layer_{name}",
        reduction=Reduction(homogeneous=True, project=two_layer.seen if shared else lambda params, data: params),
    )


def _matrix(gradient: Inner, weights: Inner) -> underflow.MatrixGradient:
    """The gradient of a matrix, as the monitors need it."""
    nonzero = jnp.any(weights.signal != 0)
    if gradient.signal is None:
        return underflow.MatrixGradient(None, None, nonzero)
    columns = moving(gradient)
    return underflow.MatrixGradient(columns.reshape(gradient.signal.size, -1), gradient.signal, nonzero)
