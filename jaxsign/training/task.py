"""Task: the pure functions that define a system, and all that the trainer and the sweep runner know of it."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxsign.validation.messages import table
from jaxsign.validation.values import name_tuple, one_line

Array = jax.Array
PyTree = Any
#: What the functions of a Task are called with, by position.
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "sample": ("key", "hyper", "shared"),
    "init": ("key", "data", "hyper"),
    "loss": ("params", "batch", "hyper"),
    "observe": ("params", "data", "test", "hyper"),
    "observe_step": ("params", "before", "data", "hyper"),
    "sample_test": ("key", "hyper", "shared"),
    "prepare": ("data", "test", "params", "hyper", "degree"),
    "batch": ("key", "data", "hyper"),
    "gradient": ("params", "batch", "hyper", "signs"),
    "scale": ("data", "hyper"),
    "describe": ("data", "test", "hyper"),
    "validate": ("hyper",),
}
#: The same for the monitors of `watch`.
WATCHED = ("params", "batch", "hyper", "gradient")


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A system to train, as a record of pure functions written for ONE run (batch with `vmap` outside).

    Two Tasks are equal only if they are the same object, so factories that build them are cached by problem:
    equal problems give the identical Task and nothing retraces.

    Args:
      sample: `(key, hyper, shared) -> data`, once a run, with the key of stream "data".
      init: `(key, data, hyper) -> params`, once a run, with the key of stream "init".
      loss: `(params, batch, hyper) -> ()`, differentiated with respect to params at every step; with `state`,
        `-> ((), {name: its new value})`.
      observe: `(params, data, test, hyper) -> {name: array}` at every recorded step. `test` is None between the
        test steps; names that appear only with a test set are NaN there.
      observe_step: `(params, before, data, hyper) -> {name: array}` at every recorded step but 0, where it is NaN:
        observables of the step that has just been taken; before are the parameters that it was taken from.
      sample_test: `(key, hyper, shared) -> test`, once a run, with the key of stream "test". None: no test set.
      prepare: `(data, test, params, hyper, degree) -> (data, test, params)`, once a run: maps the draws to the
        form that is trained; `loss`, `observe` and `batch` see its result. degree is the optimizer's if the reduction
        is homogeneous. None: the draws themselves.
      batch: `(key, data, hyper) -> batch`, every step with the step's own key; None: the data themselves. Within a
        step, all readers of a batch (`loss`, `gradient`, `watch`, an optimizer that evaluates the loss) get the same
        one. A loss that draws, such as dropout, takes the key from here: return `(data, key)`. The key of step t is
        `fold_in(js.stream(key, "train"), t)`: it depends on the seed and the step alone.
      gradient: `(params, batch, hyper, signs) -> (loss, tree like params)`, the loss and its gradient in closed form;
        with `signs` (the optimizer reads only the signs of a gradient) each entry may be off by a positive factor,
        which avoids underflow. None: automatic differentiation of `loss`.
      scale: `(data, hyper) -> tree like params` that multiplies the optimizer's updates, decoupled weight decay aside
        where the reduction is homogeneous; None: 1.
      describe: `(data, test, hyper) -> {name: array}`, constants of a run such as its noise norms, stored once; it
        gets the draws from before `prepare`.
      watch: {name: `(params, batch, hyper, gradient) -> bool ()`}, monitors evaluated at every step, with the gradient
        of the trained parameters as the optimizer sees it (None where only its signs are computed, which do not
        underflow); the trainer keeps under each name the first step at which it was triggered, -1 if never.
      validate: `hyper -> None`, a host-side check of concrete numbers that raises ValueError.
      dims: {observable: names of its dimensions}; unnamed ones are called `NAME_dim0`, ...
      attrs: {observable: {"units": ..., "long_name": ...}}.
      problem: the record that fixed the shapes, for manifests.
      name: the system's name in messages and manifests.
      reduction: exact shortcuts, such as a smaller parametrisation; most systems have none.
      state: names of top-level fields of params that no gradient trains, such as the running means of batch
        normalisation. At every step they become what the loss returns for them, computed from the parameters before the
        step; optimizer, `trainable=` and weight decay do not see them. They are part of params everywhere else: in
        `observe`, in `watch`, in checkpoints, in `run.params`. Shapes and dtypes stay those of `init` (floats, integers
        or bools); a wider float is rounded to the field's.
        None: all of params is trained.

    Raises:
      ValueError: for a field that is no function, a function that does not take these arguments, or `state` beside a
        gradient in closed form or a compact parametrisation.

    `observe` is given no key, so its values, test quantities included, are without the noise of a step. A key for the
    whole run may be kept in the data: `sample` can return one.

    Examples:
      >>> import dataclasses, jax, jax.numpy as jnp
      >>> least_squares = Task(
      ...     sample=lambda key, hyper, shared: jax.random.normal(key, (8, 3)),
      ...     init=lambda key, data, hyper: {"w": jnp.ones(3)},
      ...     loss=lambda params, x, hyper: jnp.mean((x @ params["w"]) ** 2),
      ...     observe=lambda params, data, test, hyper: {"norm": jnp.linalg.norm(params["w"])},
      ... )
      >>> def dropped(params, batch, hyper):
      ...     x, key = batch
      ...     kept = jax.random.bernoulli(key, 0.9, x.shape)
      ...     return least_squares.loss(params, jnp.where(kept, x / 0.9, 0.0), hyper)
      >>> dropout = dataclasses.replace(least_squares, batch=lambda key, data, hyper: (data, key), loss=dropped)
    """

    sample: Callable[[Array, Any, Any], PyTree]
    init: Callable[[Array, PyTree, Any], PyTree]
    loss: Callable[[PyTree, PyTree, Any], Array]
    observe: Callable[[PyTree, PyTree, PyTree | None, Any], dict[str, Array]]
    observe_step: Callable[[PyTree, PyTree, PyTree, Any], dict[str, Array]] | None = None
    sample_test: Callable[[Array, Any, Any], PyTree] | None = None
    prepare: Callable[[PyTree, PyTree | None, PyTree, Any, Array], tuple[PyTree, PyTree, PyTree]] | None = None
    batch: Callable[[Array, PyTree, Any], PyTree] | None = None
    gradient: Callable[[PyTree, PyTree, Any, bool], tuple[Array, PyTree]] | None = None
    scale: Callable[[PyTree, Any], PyTree] | None = None
    describe: Callable[[PyTree, PyTree | None, Any], dict[str, Array]] | None = None
    watch: Mapping[str, Callable[[PyTree, PyTree, Any, PyTree], Array]] = dataclasses.field(default_factory=dict)
    validate: Callable[[Any], None] | None = None
    dims: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    attrs: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    problem: Any = None
    name: str = "task"
    reduction: "Reduction" = dataclasses.field(default_factory=lambda: Reduction())
    state: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        of = "" if self.problem is None else f" of {self.problem!r}"
        return f"Task({self.name!r}{of})"

    def _repr_html_(self) -> str:
        given = [name for name in ARGUMENTS if getattr(self, name) is not None]
        rows = [("task", self.name), ("problem", self.problem), ("functions", ", ".join(given))]
        return table([*rows, ("dims", dict(self.dims)), ("watch", ", ".join(self.watch))])

    def __post_init__(self) -> None:
        optional = [field.name for field in dataclasses.fields(self) if field.default is None]
        for name, arguments in ARGUMENTS.items():
            if getattr(self, name) is not None or name not in optional:
                _check_call(name, getattr(self, name), arguments)
        if not isinstance(self.watch, Mapping):
            raise ValueError(f"watch must be a dict of name: function, got {one_line(self.watch)}")
        for name, monitor in self.watch.items():
            _check_call(f"watch[{name!r}]", monitor, WATCHED)
        self._check_state()

    def _check_state(self) -> None:
        """Checks the names of the state, and that nothing is given that does not know of it.

        Raises:
          ValueError: naming the field.
        """
        names = name_tuple("state", self.state)
        object.__setattr__(self, "state", names)
        if names is None:
            return
        if not names or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
            raise ValueError(f"state must be different names of fields of params, or None, got state={names!r}")
        if self.gradient is not None:
            raise ValueError(f"state={names!r} needs the loss differentiated, which returns it: leave gradient= away")
        if self.reduction.compact is not None:
            raise ValueError(f"state={names!r} has no compact form: leave reduction.compact away")


def _check_call(name: str, function: Any, arguments: tuple[str, ...]) -> None:
    """Checks that a field is a function that can be called with so many arguments by position.

    Raises:
      ValueError: naming the field and its arguments.
    """
    wanted = f"{name} must be a function ({', '.join(arguments)})"
    if not callable(function):
        raise ValueError(f"{wanted}, got {one_line(function)}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions do not say
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ValueError(f"{wanted}, got one of {signature}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class Reduction:
    """Exact shortcuts of a system, and the optimizers for which they are exact.

    A system without shortcuts needs none of these fields. The trainer decides by running the optimizer on small inputs
    (`jaxsign.training.mode`), and takes a shortcut only where it is exact.

    Args:
      compact: `(params, data) -> params`, an equivalent smaller parametrisation. It is exact for optimizers that move
        each coordinate by its own gradients only. `loss`, `observe` and `watch` of the task accept both forms.
      expand: the inverse of `compact`, applied once to the final parameters.
      compact_only: refuse optimizers for which `compact` is not exact, instead of training the full parameters.
      compact_decays: whether `compact` stays exact under decoupled weight decay.
      frozen: names of the fields of params (in either form) that are never trained.
      project: `(params, data) -> params`, the projection of parameters of any form on the training set, as one more
        form that `observe` takes with the same data and test=None. None: there is no smaller form.
      homogeneous: refuse optimizers that are not coordinate-wise, odd and homogeneous of some degree (their updates are
        u(c g) = sgn(c)|c|^p u(g)), decoupled weight decay aside.
      choices: the tasks that run this very system, fastest first; the first one that is exact for the optimizer is
        trained in this task's place. (): this task itself.
      padding: a larger task whose program runs this one too, or None.
      weights: the weights that the parameters stand for, where the signs of an optimizer's steps give theirs: then
        trajectory="signs" keeps these signs, and readers get the weights. None: the parameters are the weights, or
        those are not known.
    """

    compact: Callable[[PyTree, PyTree], PyTree] | None = None
    expand: Callable[[PyTree], PyTree] | None = None
    compact_only: bool = False
    compact_decays: bool = False
    frozen: tuple[str, ...] = ()
    project: Callable[[PyTree, PyTree], PyTree] | None = None
    homogeneous: bool = False
    choices: tuple[Task, ...] = ()
    padding: "Padding | None" = None
    weights: "WeightsOf | None" = None


@dataclasses.dataclass(frozen=True)
class Padding:
    """How a task is run by the program of a larger one, so that several sizes share one compiled program.

    Args:
      task: the larger task; it has no padding itself.
      case: `hyper -> hyper of the larger task`, which says how much of the larger task is used.
      sizes: {dimension: size} of the task's observables; the larger task's observables are cut to it.
    """

    task: Task
    case: Callable[[Any], Any]
    sizes: Mapping[str, int]

    def kept(self, dims: tuple[str, ...]) -> tuple[slice, ...]:
        """The index that cuts the padding off an observable with these dimensions."""
        return tuple(slice(self.sizes.get(dim)) for dim in dims)


@dataclasses.dataclass(frozen=True)
class WeightsOf:
    """The weights that the parameters of a task stand for, and how they move while the optimizer takes sign steps.

    Top-level fields of both have the same names: weights move where the field of their name is trained.

    Args:
      task: the task with these weights, which draws the same runs; it is read in its compact form if it has one.
      signs: `(params, data) -> (moves -> tree like params)`, with the weights and the data of `task` in the form that
        is trained: what does not change from step to step is computed once. moves is a tree like the parameters of the
        first task, with the signs of the optimizer's updates (int8, before `scale` multiplies them); the result has
        those of the weights' updates. All moves of one top-level field have one size, and so have its weights.
    """

    task: Task
    signs: Callable[[PyTree, PyTree], Callable[[PyTree], PyTree]]


def packaged(*functions: Callable | None) -> bool:
    """Whether functions belong to this package, so that their results cannot change while a process runs.

    Examples:
      >>> packaged(packaged, None), packaged(max)
      (True, False)
    """
    return all(function is None or _home(function).partition(".")[0] == "jaxsign" for function in functions)


def _home(function: Callable) -> str:
    """The module that a function was written in: `functools.wraps` copies the name of another one."""
    return str(getattr(function, "__globals__", {}).get("__name__", getattr(function, "__module__", "")))
