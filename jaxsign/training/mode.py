"""Which of a system's tasks is exact for an optimizer, decided by running the optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsign.optimizers.draws import draws
from jaxsign.optimizers.factories import build
from jaxsign.optimizers.grid import describe_point
from jaxsign.optimizers.probes import Homogeneity, decay, homogeneity, reads_gradients_coordinatewise
from jaxsign.training.rng import seed_key
from jaxsign.training.start import abstract_start, draw, split_params, trained_fields
from jaxsign.training.task import Task

PyTree = Any
Factory = Callable[..., optax.GradientTransformation]
Points = Sequence[Mapping[str, Any]]


#: Why a smaller parametrisation is not exact for an optimizer that draws.
NOISE = "it draws random numbers, and a smaller set of parameters would get others"


class NotExact(ValueError):
    """A task is not exact for an optimizer; the message says what was measured."""


class Fit(NamedTuple):
    """How a system is trained with an optimizer.

    Args:
      task: the task that is trained: the one asked for, or the first of its `choices` that is exact.
      compact: whether its compact parametrisation is.
      degrees: what was measured of every point of the optimizer; () for a task that is not homogeneous.
      why: why the faster choices were passed over; "" if there are none.
      padded: whether a larger task's program runs it.
    """

    task: Task
    compact: bool
    degrees: tuple[Homogeneity, ...]
    why: str
    padded: bool

    @property
    def program(self) -> Task:
        """The task whose program runs it."""
        return self.task.reduction.padding.task if self.padded and self.task.reduction.padding else self.task

    def case(self, hyper: Any) -> Any:
        """One run's numbers as the program takes them."""
        return self.task.reduction.padding.case(hyper) if self.padded and self.task.reduction.padding else hyper

    @property
    def decays(self) -> bool:
        """Whether some point holds weight decay, which a homogeneous task must not scale."""
        return any(found.decays for found in self.degrees)

    @property
    def signs(self) -> bool:
        """Whether every point reads nothing but the signs of gradients."""
        return bool(self.degrees) and all(found.signs for found in self.degrees)


def fit(
    task: Task,
    factory: Factory,
    points: Points,
    hyper: Any,
    shared: Any = None,
    trainable: Sequence[str] | None = None,
    functions: bool = False,
    label: str | None = None,
    pad: bool = False,
) -> Fit:
    """The first of a task's choices that is exact for every point of an optimizer, found by running the optimizer.

    Args:
      task: a Task.
      factory: the optimizer.
      points: keywords of each point.
      hyper: one run's numbers.
      shared: arrays common to all runs.
      trainable: names of trained parameters, or None.
      functions: whether functions of the parameters are observed: then a choice with other parameters is passed over.
      label: what to call the optimizer in messages; None: its factory's name.
      pad: whether a larger task's program may run it, which several tasks can share.

    Returns:
      Fit.

    Raises:
      NotExact: if no choice is exact, with what was measured; a ValueError. What the task or the optimizer itself
        raises comes through.
      ValueError: if the optimizer draws random numbers that are not the run's own.
    """
    choices = task.reduction.choices or (task,)
    noisy = _draws(choices[-1], factory, points, hyper, shared, trainable, label)
    reasons: list[str] = []
    if any(choice.reduction.homogeneous or choice.reduction.compact is not None for choice in choices):
        whole = _trained(choices[-1], abstract_start(choices[-1], hyper, shared).params, trainable)
        for point in _programs_of(points):
            _run(factory, point, whole)  # fails here, in its own words, if it fails anywhere
    for i, choice in enumerate(choices):
        if functions and choice.reduction.homogeneous and len(choices) > 1:
            reasons.append(f"{choice.name}: functions of the weights are observed")
            continue
        try:
            degrees = _degrees(choice, factory, points, hyper, shared, trainable, label)
            compact = _compact(choice, factory, points, hyper, shared, trainable, label)
        except NotExact as refusal:
            if i == len(choices) - 1:
                raise
            reasons.append(f"{choice.name}: {refusal}")
            continue
        padded = pad and choice.reduction.padding is not None and not noisy
        return Fit(choice, compact, degrees, "; ".join(reasons), padded)
    raise AssertionError("the last choice either fits or raises")


def _draws(
    task: Task, factory: Factory, points: Points, hyper: Any, shared: Any, trainable: Sequence[str] | None, label: Any
) -> bool:
    """Whether some point draws random numbers, which a larger task's program must not run: it would draw others.

    Raises:
      ValueError: for draws that are not each run's own.
    """
    params = abstract_start(task, hyper, shared).params
    found = draws(factory, points, split_params(params, trained_fields(task, params, trainable))[0])
    for point, one in zip(points, found):
        if one.reason:
            raise ValueError(
                f"{describe_point(factory, [point], label)} must draw from the key of each run: {one.reason} (read off "
                "its program); give js.grid a factory that draws with jax.random from its keyword key (or seed), and "
                "leave that keyword out of the grid: every run passes a key of its seed"
            )
    return any(one.drawn for one in found)


def _compact(
    task: Task, factory: Factory, points: Points, hyper: Any, shared: Any, trainable: Sequence[str] | None, label: Any
) -> bool:
    """Whether the task's compact parametrisation is exact for every point.

    Raises:
      NotExact: if it is not, and the task has nothing but its compact form.
    """
    if task.reduction.compact is None:
        return False
    start, compact = abstract_start(task, hyper, shared), task.reduction.compact
    full = _trained(task, start.params, trainable)
    small = jax.eval_shape(lambda s: _trained(task, compact(s.params, s.data), trainable), start)
    if refusal := _refusal(factory, points, small):
        reason = f"it does not take the smaller tree of parameters ({refusal})"
    elif any(found.drawn for found in draws(factory, points, full)):
        reason = NOISE
    elif reads_gradients_coordinatewise(factory, points, full):
        return True
    elif task.reduction.compact_decays and reads_gradients_coordinatewise(factory, points, full, parameters=True):
        reason = next((why for why in decay(factory, points) if why), "")
        if not reason:
            return True
    else:
        reason = "it moves a coordinate by more than that"
    if task.reduction.compact_only:
        raise NotExact(
            f"{task.name} needs an optimizer that moves each coordinate by its own gradients and by decoupled weight "
            f"decay only, got {describe_point(factory, points, label)}: {reason} (found by running it); "
            'use engine="dense"'
        )
    return False


def _degrees(
    task: Task, factory: Factory, points: Points, hyper: Any, shared: Any, trainable: Sequence[str] | None, label: Any
) -> tuple[Homogeneity, ...]:
    """The degree of every point, for tasks that need one.

    Raises:
      NotExact: for an optimizer that is not coordinate-wise, odd and homogeneous, with what was measured.
    """
    if not task.reduction.homogeneous:
        return ()
    drawn = jax.eval_shape(lambda key, h: draw(task, key, h, shared), seed_key(0), hyper).params
    full = _trained(task, drawn, trainable)
    features = _trained(task, abstract_start(task, hyper, shared).params, trainable)
    if refusal := _refusal(factory, points, features) or _refusal(factory, points, jnp.zeros(())):
        raise NotExact(
            f"{task.name} cannot run {describe_point(factory, points, label)}: it treats parameters by their names or "
            f'shapes and does not take those of this engine ({refusal}); use engine="support" or "dense"'
        )
    found = homogeneity(factory, points)
    reasons = [NOISE if noise.drawn else one.reason for one, noise in zip(found, draws(factory, points, full))]
    if not any(reasons) and not reads_gradients_coordinatewise(factory, points, full, parameters=True):
        reasons = ["it moves a coordinate by more than that coordinate's own gradients, such as a norm over a tensor"]
    for point, reason in zip(points, reasons):
        if reason:
            raise NotExact(
                f"{task.name} cannot run {describe_point(factory, [point], label)}: {reason} (found by running it); "
                'use engine="support" or "dense"'
            )
    return tuple(found)


def _trained(task: Task, params: PyTree, trainable: Sequence[str] | None) -> PyTree:
    return split_params(params, trained_fields(task, params, trainable))[0]


def _programs_of(points: Points) -> list[Mapping[str, Any]]:
    """One point of every program: those that differ in floats only share one."""
    first: dict[str, Mapping[str, Any]] = {}
    for point in points:
        first.setdefault(repr([(k, v if not isinstance(v, float) else float) for k, v in point.items()]), point)
    return list(first.values())


def _run(factory: Factory, point: Mapping[str, Any], params: PyTree) -> None:
    """Builds a transform, its state and one update for a tree of parameters; nothing is computed."""

    def update(params: PyTree) -> PyTree:
        transform, zero = build(factory, point, seed_key(0)), jnp.zeros(())
        asked = {"value": zero, "grad": params, "value_fn": lambda params: zero}
        return transform.update(params, transform.init(params), params, **asked)

    with jax.numpy_dtype_promotion("standard"):  # as where it is used
        jax.eval_shape(update, params)


def _refusal(factory: Factory, points: Points, params: PyTree) -> str:
    """Why an optimizer, which runs on the parameters asked for, does not on another tree: a mask for those, say; ""."""
    for point in _programs_of(points):
        try:
            _run(factory, point, params)
        except Exception as error:  # its own, whatever it is: the same optimizer has just run on another tree
            return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return ""
