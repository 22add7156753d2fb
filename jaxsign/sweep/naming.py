"""Checks of every name and number of a sweep, before anything is compiled or written."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.store.labels import check_results, check_task, coordinate_names
from jaxsign.store.levels import captured_names
from jaxsign.training.loop import functions_by_name
from jaxsign.training.outputs import outputs
from jaxsign.training.task import Task
from jaxsign.validation import names
from jaxsign.validation.values import distinct, exact, floats_of, numbers_of, plain_number, representable


def check_names(sweep: Any) -> None:
    """Checks the names that a sweep has when it is built: of numbers, optimizers, functions, dimensions, monitors.

    Args:
      sweep: a Sweep.

    Raises:
      ValueError: naming kind and name, and the name that it collides with or the reason why it cannot be stored.
    """
    known = coordinate_names(sweep)
    for kind, name in known:
        names.result_name(kind, name)
    functions = [("observable", name) for name in functions_by_name(sweep.observables)]
    for task in dict.fromkeys(map(sweep.task, sweep.combinations())):
        for choice in (task, *task.reduction.choices):
            check_task(choice)
            dimensions = dict.fromkeys(dim for dims in choice.dims.values() for dim in dims)
            names.different([*known, *functions, *(("alarm", name) for name in choice.watch)])
            names.different([*known, *(("dimension", dim) for dim in dimensions)])


def check_numbers(sweep: Any) -> None:
    """Checks that the float dtype represents every number, and keeps the values of a grid or an axis distinct.

    Args:
      sweep: a Sweep.

    Raises:
      ValueError: naming field, value and its rounded value, see `jaxsign.validation.values.representable`.
    """
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float))
    for family, grid in sweep.grids.items():
        for field, value in _bound(grid.factory):
            representable(f"optimizers[{family!r}]: {field}", value, dtype)
        for name in grid.keywords:
            numbers = list(dict.fromkeys(p[name] for p in grid.points if isinstance(p[name], float)))
            for value in numbers:
                representable(f"optimizers[{family!r}]: {name}", value, dtype)
            distinct(f"optimizers[{family!r}]: {name}", numbers, dtype)
    for axis in sweep.grid_axes:
        for member, values in zip(axis.members, zip(*axis.values)):
            for field, value in floats_of(f"axis {member!r}: {member}", list(values)):
                if math.isnan(value):
                    raise ValueError(f"axis {member!r} must be a list of numbers, got nan in it")
                representable(field, value, dtype)
        mapped = [_as_floats(point) if not axis.static else point for point in axis.values]
        distinct(f"axis {axis.name!r}", mapped if len(axis.members) > 1 else [point[0] for point in mapped], dtype)
        for member, values in zip(axis.members, zip(*axis.values)) if not axis.static else ():
            for value in values:
                exact(f"axis {member!r}: {member}", value, dtype)
    checked = set()
    for index in sweep.combinations():
        point = ", ".join(f"{name}={value!r}" for name, value in sweep.setting(index).items())
        problem, hyper = sweep.problem_at(index), sweep.hyper_at(index)
        for field, value in numbers_of(hyper):
            exact(f"{field} at {point}: {field}" if point else field, value, dtype)
        for field, value in (*floats_of("problem", problem), *floats_of("hyper", hyper)):
            if (field, value) not in checked:
                checked.add((field, value))
                representable(f"{field} at {point}: {field}" if point else field, value, dtype)


def _as_floats(point: tuple[Any, ...]) -> tuple[Any, ...]:
    """The numbers of a mapped point as the floats that the program takes."""
    return tuple(float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in point)


def _bound(factory: Any) -> list[tuple[str, float]]:
    """(keyword, float) of the floats that `functools.partial` has bound."""
    if not isinstance(factory, partial):
        return []
    given = {**{f"argument {i}": value for i, value in enumerate(factory.args)}, **factory.keywords}
    plain = {name: plain_number(name, value) for name, value in given.items()}
    floats = [(name, value) for name, value in plain.items() if isinstance(value, float)]
    return floats + _bound(factory.func)


def check_outputs(groups: Sequence[Any]) -> None:
    """Checks the results of all runs by tracing them: names, dtypes and dimensions, the same for every group.

    Args:
      groups: the groups of a sweep.

    Raises:
      ValueError: naming kind and name, and the name that it collides with or the reason why it cannot be stored.
    """
    sweep = groups[0].sweep
    known, recorded = coordinate_names(sweep), np.asarray(sweep.schedule.record, np.int32)
    traced: dict[Task, dict[str, Mapping[str, Any]]] = {}
    first: dict[str, tuple[str, Any, str]] = {}
    longest: dict[str, dict[str, Any]] = {}
    every: set[str] = set()
    for group in groups:
        label = f"optimizer {group.family!r} of {group.task.name}"
        if group.task not in traced:
            traced[group.task] = _results(group, recorded)
        parts = traced[group.task]
        for kind, results in parts.items():
            for name, value in results.items():
                shape = tuple(len(range(n)[index]) for n, index in zip(value.shape, group.unpadded(name, value.shape)))
                before, info, other = first.setdefault(name, (kind, value, label))
                if info.dtype != value.dtype or before != kind:
                    raise ValueError(
                        f"{kind} {name!r} is {value.dtype} for {label} and the {before} {info.dtype} for {other}: "
                        "return one dtype"
                    )
                if len(info.shape) != len(shape):
                    raise ValueError(f"{kind} {name!r} changes its rank along a static axis")
                known_shape = longest.setdefault(kind, {}).get(name)
                most: tuple[int, ...] = shape if known_shape is None else tuple(map(max, known_shape.shape, shape))
                longest[kind][name] = jax.ShapeDtypeStruct(most, value.dtype)
        returned = {name for results in parts.values() for name in results}
        every = every or returned
        if different := every ^ returned:
            name = min(different)
            raise ValueError(
                f"{first[name][0]} {name!r} is returned for some runs only: every run must return the same names"
            )
    check_results(longest, groups[0].task.dims, known)


def _results(group: Any, recorded: Any) -> dict[str, Mapping[str, Any]]:
    """{kind: {name: abstract array}} of the results of a group's runs, observables without the step dimension."""
    sweep, task, start, observed = group.sweep, group.task, group.start, group.observables
    default = jax.dtypes.canonicalize_dtype(float)
    trace = {name: jax.ShapeDtypeStruct((recorded.size, *x.shape), default) for name, x in observed.items()}
    for name in start.constants:
        if name in trace:
            names.different([("observable", name), ("constant", name)])

    # Known when it is traced, as in the sweep's own program; without a summary nobody asks.
    steps = jnp.asarray(recorded) if sweep.summary is not None else None

    def summary(constants: Any, trace: Any) -> dict[str, Any]:
        return outputs("summary", sweep.summary({**constants, **trace, "step": steps}))

    last = jax.eval_shape(summary, start.constants, trace) if sweep.summary else {}
    parts: dict[str, Mapping[str, Any]] = {
        "observable": {name: jax.ShapeDtypeStruct(x.shape, default) for name, x in observed.items()},
        "summary": last, "constant": start.constants,
        "alarm": {name: jax.ShapeDtypeStruct((), jnp.int32) for name in task.watch},
    }  # fmt: skip
    captured = captured_names(observed) if sweep.crossed else ()
    result_names = [(kind, name) for kind, results in parts.items() for name in results]
    names.different([*result_names, *(("captured variable", name) for name in sorted(captured))])
    return parts
