"""Digests of the programs that a sweep's functions trace to, in a form without names."""

import dataclasses
import enum
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.optimizers.adapters import asked, evaluated
from jaxsign.optimizers.factories import build
from jaxsign.sweep.identity.definition import plain_point, skeleton
from jaxsign.sweep.identity.sources import Reached
from jaxsign.sweep.sweep import Sweep
from jaxsign.training.loop import observers
from jaxsign.training.start import Start, split_params, trained_fields
from jaxsign.training.task import Task

#: {function: digest of its program}, of one point of the static axes.
Digests = dict[str, str]
#: Calls that XLA inlines: a program is the same with and without them.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
#: Parameters of primitives that name the origin of an equation and do not change its result.
_NAMES = ("name", "debug_info", "ctx_mesh")


def digest(program: Any) -> str:
    """Digest of a ClosedJaxpr: of its results as functions of its arguments, constants included.

    A result is identified by its primitive, parameters, shape, dtype and operands. So names, the order of independent
    equations, unused equations and inner calls of `jax.jit` do not matter.

    Args:
      program: from `jax.make_jaxpr`.

    Returns:
      16 hexadecimal digits.

    Examples:
      >>> import jax
      >>> one = jax.make_jaxpr(lambda x: 2.0 * x + 1.0)(1.0)
      >>> two = jax.make_jaxpr(jax.jit(lambda y: 1.0 + 0.0 * y if False else 2.0 * y + 1.0))(1.0)
      >>> digest(one) == digest(two), digest(one) == digest(jax.make_jaxpr(lambda x: 2.0 * x + 1.5)(1.0))
      (True, False)
    """
    return _Walk().closed(program)[:16]


class _Walk:
    """Digests of one program's values; inner programs that several equations share are walked once."""

    def __init__(self) -> None:
        self.known: dict[int, str] = {}

    def closed(self, program: Any) -> str:
        """Digest of a program as a function of its arguments."""
        jaxpr, constants = getattr(program, "jaxpr", program), getattr(program, "consts", ())
        if id(program) not in self.known:
            arguments = [_hash("argument", str(i), _shape(v.aval)) for i, v in enumerate(jaxpr.invars)]
            self.known[id(program)] = _hash(*self.results(jaxpr, constants, arguments))
        return self.known[id(program)]

    def results(self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[str]) -> list[str]:
        """Digests of a program's results, from those of its arguments."""
        from jax.extend.core import Literal  # late, since it loads Pallas

        values = dict(zip(jaxpr.invars, arguments))
        # Inner programs that are open have their constants as arguments of an outer one.
        digests = [_array(c) for c in constants] or [_hash("outer", str(i)) for i in range(len(jaxpr.constvars))]
        values |= dict(zip(jaxpr.constvars, digests))

        def of(atom: Any) -> str:
            if isinstance(atom, Literal):
                return _array(atom.val, getattr(atom.aval, "dtype", None))
            return values[atom]

        for equation in jaxpr.eqns:
            operands, inner = [of(atom) for atom in equation.invars], _inner(equation)
            if inner is not None and len(inner.jaxpr.invars) == len(operands):
                outputs = self.results(inner.jaxpr, inner.consts, operands)
            else:
                rest = {k: v for k, v in equation.params.items() if k not in _NAMES and v is not None}
                head = _hash(equation.primitive.name, self.plain(rest), *operands)
                outputs = [_hash(head, str(i), _shape(v.aval)) for i, v in enumerate(equation.outvars)]
            values |= dict(zip(equation.outvars, outputs))
        return [of(atom) for atom in jaxpr.outvars]

    def plain(self, value: Any) -> str:
        """Text of a primitive's parameter, without names and addresses."""
        from jax.extend.core import ClosedJaxpr, Jaxpr

        if isinstance(value, (Jaxpr, ClosedJaxpr)):
            return self.closed(value)
        if isinstance(value, Mapping):
            return f"{{{','.join(f'{k}:{self.plain(value[k])}' for k in sorted(value, key=str))}}}"
        if isinstance(value, enum.Enum):
            return str(value)
        if isinstance(value, (tuple, list)):
            return f"({','.join(map(self.plain, value))})"
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            return _array(value)
        if callable(value) and not isinstance(value, type):
            # A callback. Rules of derivatives are traced where they are used.
            return Reached().digest(value) or type(value).__qualname__
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            rest = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return f"{type(value).__name__}{self.plain(rest)}"
        text = repr(value)
        return type(value).__qualname__ if "0x" in text or callable(value) else text


def _inner(equation: Any) -> Any:
    """The program of a call that XLA inlines."""
    from jax.extend.core import ClosedJaxpr

    if equation.primitive.name not in _CALLS:
        return None
    return next((value for value in equation.params.values() if isinstance(value, ClosedJaxpr)), None)


def _shape(aval: Any) -> str:
    return f"{getattr(aval, 'dtype', aval)}{getattr(aval, 'shape', '')}"


def _array(value: Any, dtype: Any = None) -> str:
    """Digest of a constant."""
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return _hash(str(value.dtype), _array(jax.random.key_data(value)))
    array = np.asarray(value) if dtype is None else np.asarray(value, dtype)
    return _hash("constant", str(array.dtype), str(array.shape), np.ascontiguousarray(array).tobytes())


def _hash(*parts: str | bytes) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(str(len(data)).encode() + b":" + data)
    return hashed.hexdigest()


class Tracer:
    """Traces functions on abstract arguments; nothing is compiled or computed."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[str, Any]] = {}

    def __call__(self, function: Callable, *arguments: Any) -> tuple[str, Any]:
        """(digest of a function's program, its abstract results)."""
        leaves, structure = jax.tree.flatten(arguments)
        key = function, structure, tuple((x.shape, x.dtype) for x in leaves)
        if key not in self.known:
            # A fresh function, since JAX caches traces, and a global that the function reads may have changed since.
            program, out = jax.make_jaxpr(lambda *given: function(*given), return_shape=True)(*arguments)
            self.known[key] = _hash(digest(program), _names_of(out))[:16], out
        return self.known[key]


def _names_of(out: Any) -> str:
    """The names under which a function returns its results, such as those of observables."""
    return ",".join(map(str, out)) if isinstance(out, Mapping) else ""


def static_points(sweep: Sweep) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(text, index) of every point of a sweep's static axes; "" where it has none."""
    static = [i for i, axis in enumerate(sweep.grid_axes) if axis.static]
    for point in itertools.product(*(range(len(sweep.grid_axes[i].values)) for i in static)):
        where = dict(zip(static, point))
        values = {k: v for i in static for k, v in zip(sweep.grid_axes[i].members, sweep.grid_axes[i].values[where[i]])}
        words = ", ".join(f"{k}={json.dumps(v, default=str)}" for k, v in values.items())
        yield words, tuple(where.get(i, 0) for i in range(len(sweep.grid_axes)))


def programs(sweep: Sweep, entries: Sequence[str]) -> dict[str, dict[str, Digests]]:
    """The programs of some of a sweep's functions, traced on abstract arguments.

    Args:
      sweep: the sweep.
      entries: which of "system", "summary", "observables.NAME" and "optimizers.FAMILY".

    Returns:
      {entry: {point of the static axes: {function: digest}}}; an optimizer's functions are "init" and "update" with its
      static keywords.
    """
    out: dict[str, dict[str, Digests]] = {entry: {} for entry in entries}
    trace, dtype = Tracer(), jnp.zeros(()).dtype

    def abstract(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), dtype), tree)

    for point, index in static_points(sweep) if entries else ():
        task, hyper = sweep.task(index), abstract(sweep.hyper_at(index))
        shared = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)), sweep.shared)
        programs, start = _drawn(trace, task, hyper, shared)
        if "system" in out:
            programs |= _trained(trace, task, hyper, start)
            for choice in task.reduction.choices:
                inner, begun = _drawn(trace, choice, hyper, shared)
                inner |= _trained(trace, choice, hyper, begun)
                programs |= {f"{name} of {choice.name}": value for name, value in inner.items()}
            out["system"][point] = programs
        for function in sweep.observables or ():
            entry = f"observables.{getattr(function, '__name__', '')}"
            if callable(function) and entry in out:
                out[entry][point] = {"program": trace(function, start.params, start.data, start.test, hyper)[0]}
        if "summary" in out:
            out["summary"][point] = {"program": _summary(sweep, task, hyper, start)}
        names = trained_fields(task, start.params, sweep.trainable)
        trained = split_params(start.params, names)[0]
        for family in sweep.grids:
            if f"optimizers.{family}" in out:
                out[f"optimizers.{family}"][point] = _optimizer(sweep, family, trained)
    return out


def _drawn(trace: Tracer, task: Task, hyper: Any, shared: Any) -> tuple[Digests, Start]:
    """(programs of a task's draws, the abstract start that is trained from)."""
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    out: Digests = {}
    out["sample"], data = trace(task.sample, key, hyper, shared)
    test = None
    if task.sample_test is not None:
        out["sample_test"], test = trace(task.sample_test, key, hyper, shared)
    out["init"], params = trace(task.init, key, data, hyper)
    constants: Any = {}
    if task.describe is not None:
        out["describe"], constants = trace(task.describe, data, test, hyper)
    start = Start(data, test, params, constants)
    if task.prepare is not None:
        degree = jax.ShapeDtypeStruct((), jnp.zeros(()).dtype)
        out["prepare"], prepared = trace(task.prepare, data, test, params, hyper, degree)
        start = start._replace(data=prepared[0], test=prepared[1], params=prepared[2])
    return out, start


def _trained(trace: Tracer, task: Task, hyper: Any, start: Start) -> Digests:
    """Programs of what a task does at every step, for each form of its parameters."""
    out: Digests = {}
    data, test = start.data, start.test
    batch = data
    if task.batch is not None:
        key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
        out["batch"], batch = trace(task.batch, key, data, hyper)
    if task.scale is not None:
        out["scale"] = trace(task.scale, data, hyper)[0]
    reduction = task.reduction
    settings: tuple[Any, ...] = (
        reduction.frozen, reduction.homogeneous, reduction.compact_only, reduction.compact_decays, sorted(task.watch)
    )  # fmt: skip
    settings += () if task.state is None else (task.state,)  # older results have none
    out["how it is trained"] = _hash(repr(settings))[:16]
    forms = {"": start.params}
    if reduction.compact is not None:
        out["compact"], forms["compact "] = trace(reduction.compact, start.params, data)
        if reduction.expand is not None:
            out["expand"] = trace(reduction.expand, forms["compact "])[0]
    for form, params in forms.items():
        if task.gradient is None:
            out[f"{form}loss"] = trace(_differentiated(task), params, batch, hyper)[0]
        else:
            out[f"{form}loss"] = trace(task.loss, params, batch, hyper)[0]
            for signs in (False, True):
                gradient = _bound(task.gradient, signs)
                out[f"{form}gradient{' by signs' * signs}"] = trace(gradient, params, batch, hyper)[0]
        for name, monitor in task.watch.items():
            out[f"{form}watch.{name}"] = trace(monitor, params, batch, hyper, params)[0]
        out[f"{form}observe"] = trace(task.observe, params, data, None, hyper)[0]
        if test is not None:
            out[f"{form}observe with test"] = trace(task.observe, params, data, test, hyper)[0]
        if task.observe_step is not None:
            out[f"{form}observe_step"] = trace(task.observe_step, params, params, data, hyper)[0]
        if reduction.project is not None:
            out[f"{form}project"] = trace(reduction.project, params, data)[0]
    return out


@functools.lru_cache(maxsize=256)
def _bound(gradient: Callable, signs: bool) -> Callable:
    """A closed-form gradient for one kind of optimizer; kept, so that it is traced once."""
    return lambda params, batch, hyper: gradient(params, batch, hyper, signs)


@functools.lru_cache(maxsize=64)
def _differentiated(task: Task) -> Callable:
    """`(params, batch, hyper) -> (loss, gradient)` by automatic differentiation; the loss with the task's state."""

    def program(params: Any, batch: Any, hyper: Any) -> Any:
        names = trained_fields(task, params, None)
        trained, fixed = split_params(params, names)
        leaves, tree = jax.tree.flatten(trained)
        structure: Any = tree
        floating = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

        def loss(varied: list[Any]) -> Any:
            moving = iter(varied)
            whole = structure.unflatten([next(moving) if f else leaf for f, leaf in zip(floating, leaves)])
            merged = jax.tree.map(
                lambda a, b: b if a is None else a, whole, fixed, is_leaf=lambda leaf: leaf is None
            )  # fmt: skip
            return task.loss(merged, batch, hyper)

        return jax.value_and_grad(loss, has_aux=task.state is not None)(
            [leaf for f, leaf in zip(floating, leaves) if f]
        )

    return program


def _summary(sweep: Sweep, task: Task, hyper: Any, start: Start) -> str:
    """The program of a sweep's summary."""
    assert sweep.summary is not None
    shapes = observers(task, start, hyper, sweep.observables, scalars=True).shapes
    record, summary = sweep.schedule.record, sweep.summary
    rows = {
        name: jax.ShapeDtypeStruct((record.size, *value.shape), _floating(value.dtype))
        for name, value in shapes.items()
    }
    # As in the sweep's own program: the recorded steps are known.
    steps = np.asarray(record, np.int32)
    program, out = jax.make_jaxpr(
        lambda constants, trace: summary({**constants, **trace, "step": jnp.asarray(steps)}), return_shape=True
    )(start.constants, rows)
    return _hash(digest(program), _names_of(out))[:16]


def _floating(dtype: Any) -> Any:
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.zeros(()).dtype


def _optimizer(sweep: Sweep, family: str, trained: Any) -> Digests:
    """Programs of one family's transforms: floats are arguments, static keywords are bound."""
    grid = sweep.grids[family]
    out: Digests = {}
    dtype = jnp.zeros(()).dtype
    floats = {name: jax.ShapeDtypeStruct((), dtype) for name in grid.floats}
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    for i in range(len(grid.points)):
        static = grid.static(i)
        label = _label({name: value for name, value in plain_point(family, static).items()})
        if f"init{label}" in out:
            continue

        def init(key: Any, numbers: Any, params: Any, static: Any = static) -> Any:
            return build(grid.factory, {**static, **numbers}, key).init(params)

        def update(key: Any, numbers: Any, gradient: Any, state: Any, params: Any, static: Any = static) -> Any:
            zero = jnp.zeros(())
            extra = asked(zero, gradient, lambda params: zero)
            return build(grid.factory, {**static, **numbers}, key).update(gradient, state, params, **extra)

        def seen(key: Any, numbers: Any, state: Any, params: Any, static: Any = static) -> Any:
            iterate = evaluated(build(grid.factory, {**static, **numbers}, key))
            return params if iterate is None else iterate(state, params)

        with jax.numpy_dtype_promotion("standard"):  # as in the loop
            first, state = jax.make_jaxpr(init, return_shape=True)(key, floats, trained)
            then = jax.make_jaxpr(update)(key, floats, trained, state, trained)
            observed = digest(jax.make_jaxpr(seen)(key, floats, state, trained))
            if observed != digest(jax.make_jaxpr(_trained_itself)(key, floats, state, trained)):
                out[f"iterate{label}"] = observed
        out[f"init{label}"], out[f"update{label}"] = digest(first), digest(then)
    return out


def _trained_itself(key: Any, numbers: Any, state: Any, params: Any) -> Any:
    """What is observed without `js.observed_at`."""
    return params


def _label(point: Mapping[str, Any]) -> str:
    """Text of a point's static keywords, with a digest of what is long."""
    words = {name: json.dumps(skeleton(value), sort_keys=True) for name, value in point.items()}
    words = {name: text if len(text) <= 40 else _hash(text)[:16] for name, text in words.items()}
    return f" ({', '.join(f'{name}={text}' for name, text in words.items())})" if words else ""
