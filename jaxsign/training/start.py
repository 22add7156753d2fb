"""The start of a run: its data, test set and initial parameters, and which parameters are trained."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.training.outputs import outputs
from jaxsign.training.rng import seed_key, stream
from jaxsign.training.task import Task
from jaxsign.validation.values import known, one_line

Array = jax.Array
PyTree = Any


def field_of(path: tuple[Any, ...]) -> str:
    """The name of the top-level field that a tree path starts with; "params" for a bare array."""
    if not path:
        return "params"
    entry = path[0]
    return str(getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", entry))))


def trained_fields(task: Task, params: PyTree, trainable: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the parameters that the optimizer trains.

    Raises:
      ValueError: for an unknown or empty `trainable`.
    """
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    others = (*task.reduction.frozen, *(task.state or ()))
    names = [name for name in dict.fromkeys(field_of(path) for path, _ in paths) if name not in others]
    if trainable is None:
        return tuple(names)
    if not trainable:
        raise ValueError(f"trainable must be a non-empty tuple of names out of {names}, got {trainable!r}")
    return tuple(known("trainable parameter", name, names) for name in trainable)


def changing_fields(task: Task, params: PyTree, trainable: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the parameters that change: those that the optimizer trains, and the task's state.

    Raises:
      ValueError: for an unknown or empty `trainable`.
    """
    return (*trained_fields(task, params, trainable), *(task.state or ()))


def split_params(params: PyTree, names: Sequence[str]) -> tuple[PyTree, PyTree]:
    """(trained, fixed): the same tree twice, with None where the other one holds the leaf."""
    pick = jax.tree_util.tree_map_with_path
    trained = pick(lambda path, leaf: leaf if field_of(path) in names else None, params)
    fixed = pick(lambda path, leaf: None if field_of(path) in names else leaf, params)
    return trained, fixed


def merge_params(trained: PyTree, fixed: PyTree) -> PyTree:
    """The inverse of `split_params`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, fixed, is_leaf=lambda leaf: leaf is None)


def replaced(params: PyTree, fields: Mapping[str, PyTree]) -> PyTree:
    """The leaves of the named fields with other values, in the dtypes that they have; None in place of all others.

    Args:
      params: a tree with these fields.
      fields: {name of a field: its new value, a tree like the field}.

    Examples:
      >>> replaced({"w": 1.0, "mean": jnp.zeros(2)}, {"mean": jnp.ones(2)})["mean"].tolist()
      [1.0, 1.0]
    """
    old = split_params(params, tuple(fields))[0]
    leaves = {name: iter(jax.tree.leaves(value)) for name, value in fields.items()}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(next(leaves[field_of(path)]), leaf.dtype), old
    )


class Start(NamedTuple):
    """The start of a run: its data, test set (or None), initial parameters and constants."""

    data: PyTree
    test: PyTree
    params: PyTree
    constants: dict[str, Array]


def draw(task: Task, key: Array, hyper: Any, shared: Any = None) -> Start:
    """The data, test set, initial parameters and constants of one run before `prepare`, each from its stream."""
    data = _arrays("sample", task.sample(stream(key, "data"), hyper, shared))
    test = _arrays("sample_test", task.sample_test(stream(key, "test"), hyper, shared)) if task.sample_test else None
    params = _arrays("init", task.init(stream(key, "init"), data, hyper))
    if not jax.tree.leaves(params):
        raise ValueError(f"init must return parameters, got {one_line(params)} of {task.name}")
    constants = outputs("constant", task.describe(data, test, hyper)) if task.describe else {}
    return Start(data, test, params, constants)


def _arrays(name: str, tree: PyTree) -> PyTree:
    """What a function of a task has returned, if it is a tree of arrays.

    Raises:
      ValueError: naming the function and the place of anything else.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not isinstance(leaf, (bool, int, float, complex, np.generic, np.ndarray, jax.Array)):
            place = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise ValueError(f"{name} must return arrays, got {type(leaf).__name__} {one_line(leaf)[:80]}{place}")
    return tree


def begin(task: Task, key: Array, hyper: Any, shared: Any = None, degree: Any = None) -> Start:
    """Samples the data and the test set of one run, initialises its parameters and prepares them for training.

    It is compiled as a separate program: it depends on no optimizer, and random draws are slow to compile.

    Args:
      task: the system.
      key: run key, shape ().
      hyper: the system's numbers, may be traced.
      shared: arrays common to all runs.
      degree: the optimizer's degree if the task is homogeneous, may be traced.

    Returns:
      Start.
    """
    start = draw(task, key, hyper, shared)
    if task.prepare is None:
        return start
    prepared = task.prepare(start.data, start.test, start.params, hyper, degree)
    if not (isinstance(prepared, tuple) and len(prepared) == 3):
        raise ValueError(f"prepare must return (data, test, params), got a {type(prepared).__name__}")
    data, test, params = prepared
    return start._replace(data=data, test=test, params=params)


def abstract_start(task: Task, hyper: Any, shared: Any = None) -> Start:
    """Shapes and dtypes of `begin`, nothing computed."""
    leaves, structure = jax.tree.flatten((hyper, shared))
    return _abstract(task, structure, tuple(map(jax.typeof, leaves)))


@functools.lru_cache(maxsize=64)
def _abstract(task: Task, structure: Any, leaves: tuple[Any, ...]) -> Start:
    def start(key: Array, numbers: Any, degree: Array) -> Start:
        hyper, shared = numbers
        return begin(task, key, hyper, shared, degree)

    return jax.eval_shape(start, seed_key(0), structure.unflatten(leaves), jnp.zeros(()))
