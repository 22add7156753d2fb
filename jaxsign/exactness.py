"""For which optimizers a task's smaller form is exact, decided by running them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from jaxsign.optim import describe_point
from jaxsign.probes import Homogeneity, homogeneity, reads_gradients_coordinatewise
from jaxsign.rng import seed_key
from jaxsign.start import Start, draw, split_params, trained_fields
from jaxsign.task import Task

PyTree = Any


def use_compact(
    task: Task,
    factory: Callable[..., optax.GradientTransformation],
    points: Sequence[Mapping[str, Any]],
    start: Start,
    trainable: Sequence[str] | None = None,
) -> bool:
    """Whether the task's compact parametrisation is exact for every point of an optimizer, by a numeric probe.

    Args:
      task: a Task.
      factory: the optimizer.
      points: keywords of each point.
      start: one run's start, concrete or abstract.
      trainable: names of trained parameters, or None.

    Returns:
      True if the task has a compact form and the probe finds the transform coordinate-wise and parameter-free.

    Raises:
      ValueError: if it is not, and the task has nothing but its compact form.
    """
    if task.compact is None:
        return False

    def trained(params: PyTree) -> PyTree:
        return split_params(params, trained_fields(task, params, trainable))[0]

    compact = task.compact
    full, small = trained(start.params), jax.eval_shape(lambda s: trained(compact(s.params, s.data)), start)
    exact = reads_gradients_coordinatewise(factory, points, full) and _fits(factory, points[0], small)
    if task.compact_only and not exact:
        raise ValueError(
            f"{task.name} needs an optimizer that moves each coordinate by its own gradients only (no weight decay, "
            f"norm over a tensor or noise; found by running it), got {describe_point(factory, points)}; "
            'use engine="dense"'
        )
    return exact


def use_degrees(
    task: Task,
    factory: Callable[..., optax.GradientTransformation],
    points: Sequence[Mapping[str, Any]],
    hyper: Any,
    shared: Any = None,
    trainable: Sequence[str] | None = None,
) -> tuple[Homogeneity, ...]:
    """The degree of every point of an optimizer, for tasks that need one.

    Args:
      task: a Task.
      factory: the optimizer.
      points: keywords of each point.
      hyper: one run's numbers.
      shared: arrays common to all runs.
      trainable: names of trained parameters, or None.

    Returns:
      One Homogeneity a point; () for a task that is not homogeneous.

    Raises:
      ValueError: for an optimizer that is not coordinate-wise, odd and homogeneous, with what was measured.
    """
    if not task.homogeneous:
        return ()
    drawn = jax.eval_shape(lambda key, h: draw(task, key, h, shared), seed_key(0), hyper).params
    full = split_params(drawn, trained_fields(task, drawn, trainable))[0]
    found = homogeneity(factory, points)
    reasons = [one.reason for one in found]
    if not any(reasons) and not reads_gradients_coordinatewise(factory, points, full, parameters=True):
        reasons = [
            "it moves a coordinate by more than that coordinate's own gradients (a norm over a tensor, or noise)"
        ]
    for point, reason in zip(points, reasons):
        if reason:
            raise ValueError(
                f"{task.name} cannot run {describe_point(factory, [point])}: {reason} (found by running it); "
                'use engine="support" or "dense"'
            )
    return tuple(found)


def _fits(factory: Callable[..., optax.GradientTransformation], point: Mapping[str, Any], params: PyTree) -> bool:
    """Whether a transform takes the compact tree: a mask written for the full tree, say, does not."""
    try:
        jax.eval_shape(lambda p: factory(**point).init(p), params)
    except (TypeError, ValueError):
        return False
    return True
