"""Do a task's functions return what the trainer needs? Found by tracing them; a mistake ends in one line."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.training.rng import seed_key
from jaxsign.training.start import abstract_start, draw, field_of, split_params, trained_fields
from jaxsign.training.task import Task, packaged

PyTree = Any


def check_returns(task: Task, hyper: Any, shared: Any = None, trainable: Sequence[str] | None = None) -> None:
    """Checks what a task's functions return: parameters that can be trained, a loss that is one number, and so on.

    Nothing is computed. The systems of this package are not traced: they have tests.

    Args:
      task: the system.
      hyper: one run's numbers.
      shared: arrays common to all runs.
      trainable: names of trained parameters, or None.

    Raises:
      ValueError: naming function, what it returned and what is needed. Exceptions of the functions themselves come
        through unchanged.
    """
    if packaged(task.sample, task.init, task.loss, task.batch, task.gradient, task.scale, *task.watch.values()):
        return
    start = abstract_start(task, hyper, shared)
    trained = split_params(start.params, trained_fields(task, start.params, trainable))[0]
    for path, leaf in jax.tree_util.tree_flatten_with_path(trained)[0]:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"parameters of {task.name} must be real floats, got {_kind(leaf)} in {_place('params', path)}: make "
                "it a float, keep it in the data, or leave it out of trainable="
            )
    batch = _shapes(task.batch, seed_key(0), start.data, hyper) if task.batch else start.data
    loss = _shapes(task.loss, start.params, batch, hyper)
    if task.state is not None:
        loss = _checked_state(task, start.params, loss)
    if not _one_number(loss):
        remedy = ": return is missing" if loss is None else ": take its mean" if getattr(loss, "shape", ()) else ""
        remedy = ": name in state= what no gradient trains" if isinstance(loss, tuple) else remedy
        raise ValueError(f"loss of {task.name} must return one real number, got {_kind(loss)}{remedy}")
    if task.gradient is not None:
        given = _shapes(functools.partial(_by_value, task.gradient), start.params, batch, hyper)
        if not isinstance(given, tuple) or len(given) != 2 or not _one_number(given[0]):
            raise ValueError(f"gradient of {task.name} must return (loss, tree like params), got {_kind(given)}")
        _check_like("gradient", given[1], start.params, task)
    if task.scale is not None and task.reduction.compact is None:
        _check_like("scale", _shapes(task.scale, start.data, hyper), start.params, task)
    for name, monitor in task.watch.items():
        fired = _shapes(monitor, start.params, batch, hyper, start.params)
        if getattr(fired, "shape", None) != () or fired.dtype != bool:
            raise ValueError(f"alarm {name!r} of {task.name} must return one bool, got {_kind(fired)}")


def seeds_agree(task: Task, hyper: Any, shared: Any = None) -> bool:
    """Whether data, initial parameters and batches are the same for every seed, since no key is used.

    Args:
      task: the system.
      hyper: one run's numbers.
      shared: arrays common to all runs.

    Returns:
      False as well where the program does not show it, as inside a `jax.jit` of the user's.
    """
    if packaged(task.sample, task.init, task.batch):
        return False

    def seen(key: Any) -> PyTree:
        start = draw(task, key, hyper, shared)
        return start.data, start.params, task.batch(key, start.data, hyper) if task.batch else None

    program = jax.make_jaxpr(seen)(seed_key(0)).jaxpr
    return not _reaches(program, program.invars)


def unused_parameters(task: Task, hyper: Any, shared: Any = None, trainable: Sequence[str] | None = None) -> list[str]:
    """Names of trained fields of the parameters that the loss does not read.

    Args:
      task: the system.
      hyper: one run's numbers.
      shared: arrays common to all runs.
      trainable: names of trained parameters, or None.

    Returns:
      None of a task of this package; not those either that the program does not show, as inside a `jax.jit`.
    """
    if packaged(task.sample, task.init, task.loss, task.batch):
        return []
    start = abstract_start(task, hyper, shared)
    batch = _shapes(task.batch, seed_key(0), start.data, hyper) if task.batch else start.data

    def loss(params: PyTree, batch: PyTree, hyper: Any) -> Any:
        value = task.loss(params, batch, hyper)
        return value[0] if task.state is not None else value

    program = jax.make_jaxpr(loss)(start.params, batch, hyper).jaxpr
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(start.params)[0]]
    leaves: dict[str, list[Any]] = {}
    for path, variable in zip(paths, program.invars):
        leaves.setdefault(field_of(path), []).append(variable)
    return [name for name in trained_fields(task, start.params, trainable) if not _reaches(program, leaves[name])]


def _reaches(program: Any, variables: Sequence[Any]) -> bool:
    """Whether an output of a jaxpr depends on some of its variables, as far as its equations show."""
    from jax.extend.core import Literal  # late, since it loads Pallas

    reached = {*variables}

    def any_reached(atoms: Sequence[Any]) -> bool:
        return any(not isinstance(atom, Literal) and atom in reached for atom in atoms)

    for equation in program.eqns:
        if any_reached(equation.invars):
            reached |= {*equation.outvars}
    return any_reached(program.outvars)


def _shapes(function: Callable, *arguments: PyTree) -> Any:
    """What a function returns, abstract, in full: also what is no array."""
    returned: list[Any] = []

    def call(*given: PyTree) -> None:
        returned.append(function(*given))

    jax.eval_shape(call, *arguments)
    return returned[0]


def _by_value(gradient: Callable, params: PyTree, batch: PyTree, hyper: Any) -> Any:
    return gradient(params, batch, hyper, False)


def _one_number(value: Any) -> bool:
    return isinstance(value, jax.Array) and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)


def _check_like(name: str, tree: PyTree, params: PyTree, task: Task) -> None:
    """Checks that a function has returned a tree like the parameters."""
    expected, got = (str(jax.tree.structure(one)) for one in (params, tree))
    if expected != got:
        raise ValueError(f"{name} of {task.name} must return a tree like params, {expected}, got {got}")
    for (path, leaf), like in zip(jax.tree_util.tree_flatten_with_path(tree)[0], jax.tree.leaves(params)):
        if np.shape(leaf) not in ((), like.shape):
            place = _place(name, path)
            raise ValueError(f"{place} of {task.name} must have the shape {like.shape} or (), got {_kind(leaf)}")


def _checked_state(task: Task, params: PyTree, returned: Any) -> Any:
    """The loss that is returned beside a task's state, if the state is like that among the parameters."""
    names = task.state or ()
    fields = dict.fromkeys(field_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
    for name in names:
        if name not in fields:
            raise ValueError(f"state of {task.name} must name fields of params, {list(fields)}, got {name!r}")
    if not fields.keys() - {*names}:
        raise ValueError(f"state of {task.name} must leave a field of params to be trained, got state={names!r}")
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], Mapping):
        needed = f"(loss, {{{', '.join(f'{name!r}: its new value' for name in names)}}})"
        raise ValueError(f"loss of {task.name} with state={names!r} must return {needed}, got {_kind(returned)}")
    loss, new = returned
    if {*new} != {*names}:
        raise ValueError(f"loss of {task.name} must return new values of state={names!r}, got those of {sorted(new)}")
    for name in names:
        place = f"state {name!r} of {task.name}"
        old = jax.tree_util.tree_flatten_with_path(split_params(params, (name,))[0])[0]
        given = jax.tree_util.tree_flatten_with_path(new[name])[0]
        inside, returned_inside = ([jax.tree_util.keystr(path) for path, _ in leaves] for leaves in (old, given))
        inside = [text[len(jax.tree_util.keystr(path[:1])) :] for text, (path, _) in zip(inside, old)]
        if inside != returned_inside:
            raise ValueError(f"{place} must stay a tree with {inside}, and loss returns one with {returned_inside}")
        for (path, leaf), (_, like) in zip(given, old):
            if jax.dtypes.issubdtype(like.dtype, jax.dtypes.extended):
                raise ValueError(f"{place} must hold floats, integers or bools, got {_kind(like)}: draw in batch=")
            rounded = all(jnp.issubdtype(kind, jnp.floating) for kind in (jnp.result_type(leaf), like.dtype))
            if np.shape(leaf) != like.shape or not (rounded or jnp.result_type(leaf) == like.dtype):
                after = f"{jnp.result_type(leaf)}[{','.join(map(str, np.shape(leaf)))}]"
                raise ValueError(
                    f"{place}{jax.tree_util.keystr(path)} must stay {_kind(like)} as init returns it, and loss returns "
                    f"{after}"
                )
    return loss


def _place(name: str, path: tuple[Any, ...]) -> str:
    return f"{name}{jax.tree_util.keystr(path)}"


def _kind(value: Any) -> str:
    """Dtype and shape of an array such as float32[8], the type of anything else."""
    if isinstance(value, (jax.Array, jax.ShapeDtypeStruct, np.ndarray)):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return "None" if value is None else f"{type(value).__name__}"
