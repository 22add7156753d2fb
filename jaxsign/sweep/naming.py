"""Every name and number of a sweep, checked before anything is compiled or written."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.store.labels import check_results, check_task, coordinate_names
from jaxsign.store.levels import captured_names
from jaxsign.training.loop import functions_by_name, observers
from jaxsign.training.outputs import outputs
from jaxsign.training.task import Task
from jaxsign.validation import names
from jaxsign.validation.values import distinct, exact, floats_of, numbers_of, plain_number, representable


def check_names(sweep: Any) -> None:
    """Checks the names that are known when a sweep is built: of numbers, optimizers, functions, dimensions, alarms.

    Args:
      sweep: a Sweep.

    Raises:
      ValueError: naming kind and name, and what it collides with or why it cannot be kept.
    """
    known = coordinate_names(sweep)
    for kind, name in known:
        names.result_name(kind, name)
    functions = [("observable", name) for name in functions_by_name(sweep.observables)]
    for task in dict.fromkeys(map(sweep.task, sweep.combinations())):
        for choice in (task, *task.reduction.choices):
            check_task(choice)
            own = dict.fromkeys(dim for dims in choice.dims.values() for dim in dims)
            names.different([*known, *functions, *(("alarm", name) for name in choice.watch)])
            names.different([*known, *(("dimension", dim) for dim in own)])


def check_numbers(sweep: Any) -> None:
    """Checks that the run's float dtype keeps every number what it is, and the values of a grid or an axis apart.

    Args:
      sweep: a Sweep.

    Raises:
      ValueError: naming field, value and what it becomes, see `jaxsign.validation.values.representable`.
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
    seen = set()
    for index in sweep.combinations():
        where = ", ".join(f"{name}={value!r}" for name, value in sweep.setting(index).items())
        problem, hyper = sweep.problem_at(index), sweep.hyper_at(index)
        for field, value in numbers_of(hyper):
            exact(f"{field} at {where}: {field}" if where else field, value, dtype)
        for field, value in (*floats_of("problem", problem), *floats_of("hyper", hyper)):
            if (field, value) not in seen:
                seen.add((field, value))
                representable(f"{field} at {where}: {field}" if where else field, value, dtype)


def _as_floats(point: tuple[Any, ...]) -> tuple[Any, ...]:
    """The numbers of a mapped point as the floats that the program takes."""
    return tuple(float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in point)


def _bound(factory: Any) -> list[tuple[str, float]]:
    """(keyword, float) of what `functools.partial` has bound."""
    if not isinstance(factory, partial):
        return []
    given = {**{f"argument {i}": value for i, value in enumerate(factory.args)}, **factory.keywords}
    plain = {name: plain_number(name, value) for name, value in given.items()}
    own = [(name, value) for name, value in plain.items() if isinstance(value, float)]
    return own + _bound(factory.func)


def check_outputs(sweep: Any, groups: Sequence[Any]) -> None:
    """Checks what the runs return, found by tracing them: names, dtypes, dimensions, the same of every group.

    Args:
      sweep: a Sweep.
      groups: its groups.

    Raises:
      ValueError: naming kind and name, and what it collides with or why it cannot be kept.
    """
    known, recorded = coordinate_names(sweep), jnp.asarray(sweep.schedule.record, jnp.int32)
    traced: dict[Task, dict[str, Mapping[str, Any]]] = {}
    first: dict[str, tuple[str, Any, str]] = {}
    longest: dict[str, dict[str, Any]] = {}
    every: set[str] = set()
    for group in groups:
        label = f"optimizer {group.family!r} of {group.task.name}"
        if group.task not in traced:
            traced[group.task] = _returned(sweep, group, recorded)
        parts = traced[group.task]
        for kind, found in parts.items():
            for name, value in found.items():
                shape = tuple(len(range(n)[kept]) for n, kept in zip(value.shape, group.kept(name, value.shape)))
                before, info, other = first.setdefault(name, (kind, value, label))
                if info.dtype != value.dtype or before != kind:
                    raise ValueError(
                        f"{kind} {name!r} is {value.dtype} for {label} and the {before} {info.dtype} for {other}: "
                        "return one dtype"
                    )
                if len(info.shape) != len(shape):
                    raise ValueError(f"{kind} {name!r} changes its rank along a static axis")
                held = longest.setdefault(kind, {}).get(name)
                most: tuple[int, ...] = shape if held is None else tuple(map(max, held.shape, shape))
                longest[kind][name] = jax.ShapeDtypeStruct(most, value.dtype)
        here = {name for found in parts.values() for name in found}
        every = every or here
        if different := every ^ here:
            name = min(different)
            raise ValueError(
                f"{first[name][0]} {name!r} is returned for some runs only: every run must return the same names"
            )
    check_results(longest, groups[0].task.dims, known)


def _returned(sweep: Any, group: Any, recorded: Any) -> dict[str, Mapping[str, Any]]:
    """{kind: {name: abstract array}} of what the runs of a group return, without steps."""
    task, start = group.task, group.start
    hyper = group.choice.case(sweep.hyper_at(tuple(group.fixed.get(i, 0) for i in range(len(sweep.grid_axes)))))
    observed = observers(task, start, hyper, sweep.observables, scalars=True)[0]
    default = jax.dtypes.canonicalize_dtype(float)
    trace = {name: jax.ShapeDtypeStruct((recorded.size, *x.shape), default) for name, x in observed.items()}
    for name in start.constants:
        if name in trace:
            names.different([("observable", name), ("constant", name)])

    def summary(constants: Any, trace: Any) -> dict[str, Any]:
        return outputs("summary", sweep.summary({**constants, **trace, "step": recorded}))

    last = jax.eval_shape(summary, start.constants, trace) if sweep.summary else {}
    parts: dict[str, Mapping[str, Any]] = {
        "observable": {name: jax.ShapeDtypeStruct(x.shape, default) for name, x in observed.items()},
        "summary": last, "constant": start.constants,
        "alarm": {name: jax.ShapeDtypeStruct((), jnp.int32) for name in task.watch},
    }  # fmt: skip
    captured = captured_names(observed) if sweep.crossed else ()
    own = [(kind, name) for kind, found in parts.items() for name in found]
    names.different([*own, *(("captured variable", name) for name in sorted(captured))])
    return parts
