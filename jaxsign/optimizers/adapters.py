"""How is a transform called that asks for more than a gradient, and where are its runs observed?"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

from jaxsign.compilation import filled

Array = jax.Array
PyTree = Any
Transform: TypeAlias = optax.GradientTransformation | optax.MultiSteps

#: Functions of Optax whose transforms cannot train here, by name, and why.
REFUSED: Mapping[str, str] = {
    "differentially_private_aggregate": "it needs the gradient of every example, and a task gives that of its loss",
}


def asked(value: Array, gradient: PyTree, value_fn: Callable[[PyTree], Array]) -> dict[str, Any]:
    """The extra arguments that every update gets; a transform takes those that it names.

    Args:
      value: the loss, shape ().
      gradient: its gradient, a tree like the trained parameters.
      value_fn: `params -> loss` on the step's batch.

    Returns:
      {"value", "grad", "value_fn", "obj_fn" (the same), "grad_fn": `(params, ...) -> gradient`}.
    """

    def grad_fn(params: PyTree, *_: Any) -> PyTree:
        return jax.grad(value_fn)(params)

    return {"value": value, "grad": gradient, "value_fn": value_fn, "obj_fn": value_fn, "grad_fn": grad_fn}


def driven(
    transform: optax.GradientTransformationExtraArgs,
    tree_of: Callable[[Any], PyTree],
    params: Any,
    gradients: Any,
    read: Callable[[PyTree], Any] = jax.tree.leaves,
) -> Any:
    """What a transform makes of a history of parameters and gradients, to find out what its updates depend on.

    The loss that it is given is 1, so that a step in proportion to it is none of 0. The loss that it may evaluate
    elsewhere differs by half the change of the square of the sum of all parameters: a transform that does so, or takes
    its gradient, then moves a coordinate by all of them.

    Args:
      transform: of `adapted`.
      tree_of: the tree of parameters, or of gradients, that the numbers of one step stand for.
      params: numbers of every step, each with a leading axis (steps,).
      gradients: likewise.
      read: what is kept of the updates of a step, a tree.

    Returns:
      What `read` gives at every step, with a leading axis (steps,).

    Examples:
      >>> import jax.numpy as jnp
      >>> history = jnp.zeros((3, 2)), jnp.ones((3, 2))
      >>> driven(adapted(optax.sgd(0.5)), lambda x: x, *history, read=jnp.sum).tolist()
      [-1.0, -1.0, -1.0]
    """
    one = jax.numpy.ones(())

    def square(params: PyTree) -> Array:
        return sum((jax.numpy.sum(leaf) for leaf in jax.tree.leaves(params)), 0 * one) ** 2

    def step(state: Any, numbers: Any) -> Any:
        now, gradient = map(tree_of, numbers)
        extra = asked(one, gradient, lambda params: one + (square(params) - square(now)) / 2)
        updates, state = transform.update(gradient, state, now, **extra)
        return state, read(updates)

    first = tree_of(jax.tree.map(lambda x: x[0], params))
    return jax.lax.scan(step, transform.init(first), (params, gradients))[1]


def adapted(transform: Transform) -> optax.GradientTransformationExtraArgs:
    """A transform that takes the parameters themselves and the arguments of `asked`.

    `optax.MultiSteps` becomes its transform, `optax.lookahead` keeps its slow parameters in its state.

    Raises:
      ValueError: for one that cannot train here, with the reason.

    Examples:
      >>> import jax.numpy as jnp
      >>> state = adapted(optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)).init(jnp.ones(2))
      >>> state.slow.tolist()
      [1.0, 1.0]
    """
    if isinstance(transform, optax.MultiSteps):
        transform = transform.gradient_transformation()
    if not (callable(getattr(transform, "init", None)) and callable(getattr(transform, "update", None))):
        raise ValueError(f"an optimizer must be an Optax transform, with init and update, got {transform!r}")
    parts = list(_parts(transform))
    makers = [maker for part in parts if (maker := _maker(part))]
    for name in makers:
        if name in REFUSED:
            raise ValueError(f"optax.contrib.{name} cannot train: {REFUSED[name]}")
    if _maker(transform.update) == "lookahead":
        transform = _lookahead(transform)
    elif "lookahead" in makers and not isinstance(transform.update, ObservedUpdate):
        raise ValueError("optax.lookahead must be the outermost transform: it keeps two sets of parameters")
    if sum(isinstance(part, ObservedUpdate) for part in parts) > isinstance(transform.update, ObservedUpdate):
        raise ValueError("js.observed_at must be the outermost transform: inside another one nothing is observed by it")
    if not isinstance(transform, optax.GradientTransformationExtraArgs):
        return optax.with_extra_args_support(transform)
    # Some transforms take any argument and hand it on, and refuse what their own parts do not know.
    rare = {name for part in parts for name in inspect.signature(part).parameters} & {"obj_fn", "grad_fn"}
    parameters = inspect.signature(transform.update).parameters.values()
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = ("value", "grad", "value_fn", *sorted(rare))
    known = names if any_name else tuple(p.name for p in parameters if p.name in names)
    return optax.GradientTransformationExtraArgs(transform.init, _observed_alike(transform.update, known))


def _observed_alike(update: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """An update that is given certain arguments only; one of `observed_at` stays one."""
    if isinstance(update, ObservedUpdate):
        return update
    return update if isinstance(update, _Named) else _Named(update, names)


def observed_at(
    transform: Transform, iterate: Callable[[PyTree, PyTree], PyTree]
) -> optax.GradientTransformationExtraArgs:
    """The same transform, whose runs are observed at another iterate than the trained parameters.

    Schedule-free methods, averages and lookahead train one set of parameters and evaluate another one, which their
    state holds. `observe` gets that one; `loss`, `watch`, `observe_step`, divergence and `run.params` stay those of the
    trained parameters. It must be the outermost transform. `levels=` and `trajectory=` are refused with it, and so is
    every engine but "dense".

    Args:
      transform: any transform.
      iterate: `(state, params) -> a tree like params`, of the optimizer's state and the trained parameters, such as
        `optax.contrib.schedule_free_eval_params`; for `optax.lookahead`, `lambda state, params: state.slow`.

    Returns:
      A transform with the same updates.

    Examples:
      >>> import jax.numpy as jnp
      >>> free = observed_at(optax.contrib.schedule_free_sgd(0.1), optax.contrib.schedule_free_eval_params)
      >>> evaluated(free)(free.init(jnp.ones(2)), jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    if not callable(iterate):
        raise ValueError(f"iterate must be a function (state, params) -> params, got {iterate!r}")
    inner = adapted(transform)
    return optax.GradientTransformationExtraArgs(inner.init, ObservedUpdate(inner.update, iterate))


def evaluated(transform: optax.GradientTransformation) -> Callable[[PyTree, PyTree], PyTree] | None:
    """The iterate of `observed_at`; None where the trained parameters are observed."""
    return transform.update.iterate if isinstance(transform.update, ObservedUpdate) else None


@dataclasses.dataclass(frozen=True)
class ObservedUpdate:
    """The update of `observed_at`: that of the transform, with the iterate beside it."""

    update: Callable[..., Any]
    iterate: Callable[[PyTree, PyTree], PyTree]

    def __call__(self, updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        """The transform's update."""
        return self.update(updates, state, params, **extra)


@dataclasses.dataclass(frozen=True)
class _Named:
    """An update that is given only the extra arguments that it names."""

    update: Callable[..., Any]
    names: tuple[str, ...]

    def __call__(self, updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        return self.update(updates, state, params, **{name: extra[name] for name in self.names if name in extra})


class Misfit(ValueError):
    """An update does not fit a compiled loop over the parameters; the message says how."""


def check_fit(params: PyTree, updates: PyTree, before: PyTree, after: PyTree) -> None:
    """Checks that an update returns a tree like the parameters, and leaves the form of its state as it is.

    Raises:
      Misfit: naming what differs.
    """
    like, given = (str(jax.tree.structure(tree)) for tree in (params, updates))
    shapes, got = ([leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (params, updates))
    if like != given or shapes != got:
        raise Misfit("its updates are no tree like the parameters, as those of a measurement")
    was, now = (str(jax.tree.structure(tree)) for tree in (before, after))
    if was != now:
        raise Misfit("an update changes the tree of its state, which a compiled loop cannot follow")
    for (path, one), two in zip(jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after)):
        kinds = [f"{jax.numpy.result_type(leaf)}{list(jax.numpy.shape(leaf))}" for leaf in (one, two)]
        if kinds[0] != kinds[1]:
            place = jax.tree_util.keystr(path)
            raise Misfit(f"an update turns {place} of its state from {kinds[0]} into {kinds[1]}")


class LookaheadState(NamedTuple):
    """The state of `optax.lookahead` with its slow parameters."""

    inner: PyTree
    slow: PyTree


@dataclasses.dataclass(frozen=True)
class _SlowAndFast:
    """The update of `optax.lookahead` for the fast parameters alone."""

    update: Callable[..., Any]

    def __call__(
        self, updates: PyTree, state: LookaheadState, params: PyTree = None, **_: Any
    ) -> tuple[PyTree, LookaheadState]:
        both, inner = self.update(updates, state.inner, optax.LookaheadParams(fast=params, slow=state.slow))
        return both.fast, LookaheadState(inner, optax.apply_updates(state.slow, both.slow))


def _lookahead(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    def init(params: PyTree) -> LookaheadState:
        return LookaheadState(transform.init(optax.LookaheadParams.init_synced(params)), params)

    return optax.GradientTransformationExtraArgs(init, _SlowAndFast(transform.update))


def _maker(function: Any) -> str:
    """The name of Optax's function that has made a function; "" for any other."""
    name, home = getattr(function, "__qualname__", ""), str(getattr(function, "__module__", ""))
    return name.partition(".<locals>")[0] if home.partition(".")[0] == "optax" and ".<locals>" in name else ""


def _parts(value: Any, depth: int = 12) -> Iterator[Callable[..., Any]]:
    """The functions that a transform consists of."""
    if depth == 0:
        return
    inside: list[Any] = []
    if isinstance(value, (tuple, list)):
        inside = list(value)
    elif isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, functools.partial):
        inside = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, (ObservedUpdate, _Named, _SlowAndFast)):
        yield value
        inside = [value.update]
    elif inspect.ismethod(value):  # of optax.MultiSteps
        yield value
        inside = list(vars(value.__self__).values()) if hasattr(value.__self__, "__dict__") else []
    elif inspect.isfunction(value):
        yield value
        inside = [cell.cell_contents for cell in value.__closure__ or () if filled(cell)]
    for one in inside:
        yield from _parts(one, depth - 1)
