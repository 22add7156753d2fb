"""The fastest form in which a system can be trained exactly with an optimizer, found by running the optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsign.optimizers.adapters import Misfit, asked, evaluated
from jaxsign.optimizers.draws import draws
from jaxsign.optimizers.factories import build, traced
from jaxsign.optimizers.grid import describe_point
from jaxsign.optimizers.probes import Homogeneity, decay, homogeneity, reads_gradients_coordinatewise, told_apart
from jaxsign.training.rng import seed_key
from jaxsign.training.start import abstract_start, draw, split_params, trained_fields
from jaxsign.training.task import Task

PyTree = Any
Factory = Callable[..., optax.GradientTransformation]
Points = Sequence[Mapping[str, Any]]


#: Why a smaller parametrisation is not exact for an optimizer that draws.
NOISE = "it draws random numbers, and a smaller set of parameters would get others"


#: Why a smaller parametrisation is not exact for an optimizer of `js.observed_at`.
ELSEWHERE = "it is observed at another iterate, which need not be one of fewer parameters"


class NotExact(ValueError):
    """A task is not exact for an optimizer; the message says what was measured."""


class Mode(NamedTuple):
    """The form in which a task is trained. Modes are hashable: programs with equal modes can be shared.

    Args:
      task: the task that is trained.
      compact: train its compact parametrisation instead of the full parameters.
      decays: the updates contain decoupled weight decay, which `task.scale` must not multiply.
      signs: the optimizer reads only the signs of gradients, which `task.gradient` may use.
    """

    task: Task
    compact: bool = False
    decays: bool = False
    signs: bool = False

    def reduced(self, params: PyTree, data: PyTree) -> PyTree:
        """Full parameters in the form that is trained."""
        compact = self.task.reduction.compact if self.compact else None
        return params if compact is None else compact(params, data)

    def expanded(self, params: PyTree) -> PyTree:
        """The inverse of `reduced`."""
        expand = self.task.reduction.expand if self.compact else None
        return params if expand is None else expand(params)


class Choice(NamedTuple):
    """The mode that was chosen for a system and an optimizer, and why.

    Args:
      task: the system's task: the given one, or the first of its choices that is exact.
      mode: the mode of the program that runs it; its task is another, larger one where the runs are padded.
      degrees: the measured degree of every point of the optimizer; () for a task that is not homogeneous.
      why: why the faster choices were passed over; "" if there are none.
    """

    task: Task
    mode: Mode
    degrees: tuple[Homogeneity, ...]
    why: str

    @property
    def padded(self) -> bool:
        """Whether a larger task's program runs it."""
        return self.mode.task is not self.task

    def case(self, hyper: Any) -> Any:
        """One run's numbers as the program takes them."""
        padding = self.task.reduction.padding if self.padded else None
        return hyper if padding is None else padding.case(hyper)


class _Runs(NamedTuple):
    """The runs that a mode is chosen for: an optimizer, its points, and one run's numbers; see `choose_mode`."""

    factory: Factory
    points: Points
    hyper: Any
    shared: Any
    trainable: Sequence[str] | None
    label: str | None

    def optimizer(self, points: Points) -> str:
        """The optimizer at some points, for messages."""
        return describe_point(self.factory, points, self.label)

    @property
    def observed_elsewhere(self) -> bool:
        """Whether `js.observed_at` names another iterate than the trained parameters."""
        points = _programs_of(self.points)
        return any(evaluated(build(self.factory, point, seed_key(0))) is not None for point in points)

    def full(self, task: Task) -> PyTree:
        """The trained parameters of a task, abstract, in full."""
        return _trained(task, abstract_start(task, self.hyper, self.shared).params, self.trainable)


def choose_mode(
    task: Task,
    factory: Factory,
    points: Points,
    hyper: Any,
    shared: Any = None,
    trainable: Sequence[str] | None = None,
    functions: bool = False,
    label: str | None = None,
    pad: bool = False,
    weights: bool = False,
) -> Choice:
    """Chooses the first of a task's choices that is exact for every point of an optimizer, by running the optimizer.

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
      weights: whether the steps of weights are kept: then a choice with other parameters is passed over.

    Returns:
      Choice.

    Raises:
      NotExact: if no choice is exact, with what was measured; a ValueError. Exceptions of the task or the optimizer
        itself come through.
      ValueError: if the optimizer draws random numbers that are not the run's own.
    """
    choices, runs = task.reduction.choices or (task,), _Runs(factory, points, hyper, shared, trainable, label)
    noisy = _draws(choices[-1], runs)
    if any(choice.reduction.homogeneous or choice.reduction.compact is not None for choice in choices):
        parameters = runs.full(choices[-1])
        for point in _programs_of(points):
            _run(factory, point, parameters)  # an optimizer that fails anywhere fails here, with its own message
    reasons: list[str] = []
    for choice in choices:
        if (functions or weights) and choice.reduction.homogeneous and len(choices) > 1:
            needed = "functions of the weights are observed" if functions else "signs of weights' steps are kept"
            reasons.append(f"{choice.name}: {needed}")
            continue
        try:
            degrees, compact = _degrees(choice, runs), _compact(choice, runs)
        except NotExact as refusal:
            if choice is choices[-1]:
                raise
            reasons.append(f"{choice.name}: {refusal}")
            continue
        padding = choice.reduction.padding if pad and not noisy else None
        decays = any(degree.decays for degree in degrees)
        signs = bool(degrees) and all(degree.signs for degree in degrees)
        mode = Mode(choice if padding is None else padding.task, compact, decays, signs)
        return Choice(choice, mode, degrees, "; ".join(reasons))
    raise AssertionError("the last choice is exact or raises")


def _draws(task: Task, runs: _Runs) -> bool:
    """Whether some point draws random numbers, which a larger task's program must not run: it would draw others.

    Raises:
      ValueError: for draws that are not each run's own.
    """
    try:
        drawn = draws(runs.factory, runs.points, runs.full(task))
    except Misfit as misfit:
        raise ValueError(f"{runs.optimizer(runs.points)} cannot train: {misfit}") from None
    for point, draw_of_point in zip(runs.points, drawn):
        if draw_of_point.reason:
            raise ValueError(
                f"{runs.optimizer([point])} must draw from the key of each run: {draw_of_point.reason} (read off "
                "its program); give js.grid a factory that draws with jax.random from its keyword key (or seed), and "
                "leave that keyword out of the grid: every run passes a key of its seed"
            )
    return any(draw_of_point.drawn for draw_of_point in drawn)


def _compact(task: Task, runs: _Runs) -> bool:
    """Whether the task's compact parametrisation is exact for every point.

    Raises:
      NotExact: if it is not, and the task has nothing but its compact form.
    """
    factory, points, compact = runs.factory, runs.points, task.reduction.compact
    if compact is None:
        return False
    if runs.observed_elsewhere:
        if task.reduction.compact_only:
            raise NotExact(f'{task.name} cannot run {runs.optimizer(points)}: {ELSEWHERE}; use engine="dense"')
        return False
    start, full = abstract_start(task, runs.hyper, runs.shared), runs.full(task)
    small = jax.eval_shape(lambda s: _trained(task, compact(s.params, s.data), runs.trainable), start)
    if refusal := _refusal(factory, points, small):
        reason = f"it does not take the smaller tree of parameters ({refusal})"
    elif any(draw_of_point.drawn for draw_of_point in draws(factory, points, full)):
        reason = NOISE
    else:
        alone = reads_gradients_coordinatewise(factory, points, full)
        decays = not alone and task.reduction.compact_decays
        if not alone and not (decays and reads_gradients_coordinatewise(factory, points, full, parameters=True)):
            reason = "it moves a coordinate by more than that"
        elif apart := next(filter(None, told_apart(factory, points, small, full)), ""):
            reason = f"it moves {apart} by another rule than in full, by its shape"
        else:
            reason = "" if alone else next((why for why in decay(factory, points) if why), "")
        if not reason:
            return True
    if task.reduction.compact_only:
        raise NotExact(
            f"{task.name} needs an optimizer that moves each coordinate by its own gradients and by decoupled weight "
            f"decay only, got {runs.optimizer(points)}: {reason} (found by running it); "
            'use engine="dense"'
        )
    return False


def _degrees(task: Task, runs: _Runs) -> tuple[Homogeneity, ...]:
    """The degree of every point, for tasks that need one.

    Raises:
      NotExact: for an optimizer that is not coordinate-wise, odd and homogeneous, with what was measured.
    """
    if not task.reduction.homogeneous:
        return ()
    factory, points = runs.factory, runs.points
    if runs.observed_elsewhere:
        raise NotExact(f'{task.name} cannot run {runs.optimizer(points)}: {ELSEWHERE}; use engine="dense"')
    drawn = jax.eval_shape(lambda key, h: draw(task, key, h, runs.shared), seed_key(0), runs.hyper).params
    features = runs.full(task)
    if refusal := _refusal(factory, points, features):
        raise NotExact(
            f"{task.name} cannot run {runs.optimizer(points)}: it treats parameters by their names or "
            f'shapes and does not take those of this engine ({refusal}); use engine="support" or "dense"'
        )
    weights = _weights(_trained(task, drawn, runs.trainable), features)
    for_features = bool(_refusal(factory, points, weights))  # it names the engine's own parameters
    template = features if for_features else weights
    noise = draws(factory, points, template)
    degrees = homogeneity(factory, points, features)
    reasons = [NOISE if drawn.drawn else degree.reason for degree, drawn in zip(degrees, noise)]
    if not any(reasons) and not reads_gradients_coordinatewise(factory, points, template, parameters=True):
        reasons = ["it moves a coordinate by more than that coordinate's own gradients, such as a norm over a tensor"]
    if not any(reasons) and for_features and any(degree.decays for degree in degrees):
        reasons = [
            "weight decay must not tell this engine's own parameters apart, which are parts of one weight matrix"
        ]
    if not any(reasons) and not for_features:
        reasons = [
            f"it moves {name} by another rule than the weights that it stands for, by name or by shape" if name else ""
            for name in told_apart(factory, points, features, weights)
        ]
    for point, reason in zip(points, reasons):
        if reason:
            raise NotExact(
                f"{task.name} cannot run {runs.optimizer([point])}: {reason} (found by running it); "
                'use engine="support" or "dense"'
            )
    return tuple(degrees)


def _weights(weights: PyTree, features: PyTree) -> PyTree:
    """The weights that features stand for; where features are drawn at once, one array for every field of theirs."""
    structure: Any = jax.tree.structure(weights)
    if structure != jax.tree.structure(features):
        return weights
    fields, structure = jax.tree.flatten(weights, is_leaf=lambda node: node is not weights)
    return structure.unflatten([max(jax.tree.leaves(field), key=lambda leaf: len(leaf.shape)) for field in fields])


def _trained(task: Task, params: PyTree, trainable: Sequence[str] | None) -> PyTree:
    return split_params(params, trained_fields(task, params, trainable))[0]


def _programs_of(points: Points) -> list[Mapping[str, Any]]:
    """One point of every program: points that differ in floats only share one."""
    first: dict[str, Mapping[str, Any]] = {}
    for point in points:
        floats = traced(point)
        first.setdefault(repr([(k, float if k in floats else v) for k, v in point.items()]), point)
    return list(first.values())


def _run(factory: Factory, point: Mapping[str, Any], params: PyTree) -> None:
    """Traces a transform, its state and one update for a tree of parameters; nothing is computed."""

    def update(params: PyTree) -> PyTree:
        transform, zero = build(factory, point, seed_key(0)), jnp.zeros(())
        return transform.update(params, transform.init(params), params, **asked(zero, params, lambda params: zero))

    with jax.numpy_dtype_promotion("standard"):  # as where it is used
        jax.eval_shape(update, params)


def _refusal(factory: Factory, points: Points, params: PyTree) -> str:
    """Why an optimizer does not run on these parameters, such as a mask for other ones; "" if it does."""
    for point in _programs_of(points):
        try:
            _run(factory, point, params)
        except Exception as error:  # of any kind: the same optimizer has just run on another tree
            return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return ""
