"""A sweep's identity: its definition as plain JSON, and the hash that names it. Nothing here can be executed back."""

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from jaxsign.optim import Grid, as_grid
from jaxsign.sweep.grid import Sweep


def definition(sweep: Sweep) -> dict[str, Any]:
    """The sweep as plain JSON: everything that decides its numbers, nothing that only decides its speed.

    A callable is its module and qualified name, its bound keywords and the hash of its source; the code of installed
    packages is known by name alone, since versions are recorded beside the definition and warned about, not hashed. A
    transform built by the user is described through the functions and numbers it closed over.

    Args:
      sweep: a Sweep.

    Returns:
      A dict of str, numbers, lists and dicts.

    Raises:
      ValueError: for a lambda, or a callable that closes over something without a plain description.
    """
    return {
        "system": describe("system", sweep.system),
        "engine": sweep.engine,
        "problem": plain("problem", sweep.problem),
        "hyper": plain("hyper", sweep.hyper),
        "steps": sweep.schedule.steps,
        "record": sweep.schedule.record.tolist(),
        "test": sweep.schedule.record[sweep.schedule.test].tolist(),
        **({"levels": list(sweep.crossed)} if sweep.crossed else {}),
        "observables": None if sweep.observables is None else [plain("observables", o) for o in sweep.observables],
        "trainable": None if sweep.trainable is None else list(sweep.trainable),
        "summary": None if sweep.summary is None else describe("summary", sweep.summary),
        "keep_trace": sweep.keep_trace,
        "shared": None if sweep.shared is None else plain("shared", sweep.shared),
        "trajectory": plain("trajectory", sweep.trajectory),
        "optimizers": {family: _optimizer(family, entry) for family, entry in sweep.optimizers.items()},
        "axes": [
            {"members": list(a.members), "values": [[plain(a.name, v) for v in point] for point in a.values]}
            for a in sweep.grid_axes
        ],
        "seeds": list(sweep.seeds),
        "dtype": np.dtype(jax.dtypes.canonicalize_dtype(float)).name,
    }


def content_hash(definition: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a definition.

    Examples:
      >>> content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
      True
    """
    return hashlib.sha256(json.dumps(definition, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def extension(path: str, stored: Mapping[str, Any], new: Mapping[str, Any]) -> list[list[int]]:
    """The order in which a store holds the points of a definition that is the stored one or extends it.

    An extension has more values on an axis, more seeds, more optimizers or more points of one; nothing else.

    Args:
      path: results directory, for messages.
      stored: its manifest.
      new: the definition to run.

    Returns:
      For every dimension of (axes, optimizer, seed): the new definition's index at every stored place, those that are
      stored already first.

    Raises:
      ValueError: for any other change, with the differences.
    """
    old, order = stored["definition"], stored["order"]
    grid = ("axes", "optimizers", "seeds")
    rest = [{k: v for k, v in d.items() if k not in grid} for d in (old, new)]
    changed = differences(rest[0], rest[1])
    before, after = ([axis["members"] for axis in d["axes"]] for d in (old, new))
    changed += differences(before, after, "axes")
    families = {name: entry["factory"] for name, entry in old["optimizers"].items()}
    known = {name: entry["factory"] for name, entry in new["optimizers"].items() if name in families}
    changed += differences(families, known, "optimizers")
    if changed:
        raise ValueError(f"out={path!r} belongs to another definition: {'; '.join(changed)}")
    out = []
    names = [*(",".join(members) for members in before), "optimizer", "seed"]
    for name, was, now, place in zip(names, _points(old), _points(new), order):
        held = [was[i] for i in place]
        gone = [value for value in held if value not in now]
        if gone:
            raise ValueError(
                f"out={path!r} belongs to another definition: {name} {_brief(gone[0])} is stored and not asked for "
                "(a stored sweep may be extended, not cut)"
            )
        first = [now.index(value) for value in held]
        out.append(first + [i for i in range(len(now)) if i not in set(first)])
    return out


def _points(definition: Mapping[str, Any]) -> list[list[Any]]:
    """The points of every dimension of (axes, optimizer, seed)."""
    optimizers = [[name, p] for name, entry in definition["optimizers"].items() for p in entry["points"]]
    return [*(axis["values"] for axis in definition["axes"]), optimizers, definition["seeds"]]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Readable lines for what differs between two definitions.

    Examples:
      >>> differences({"steps": 10, "n": 1}, {"steps": 20, "n": 1})
      ['steps: 10 -> 20']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = dict.fromkeys([*old, *new])
        parts = [differences(old.get(n), new.get(n), f"{path}.{n}" if path else n) for n in names]
        return [line for part in parts for line in part]
    if old == new:
        return []
    return [f"{path}: {_brief(old)} -> {_brief(new)}"]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(value)} entries)"


def _optimizer(family: str, entry: Any) -> dict[str, Any]:
    grid: Grid = as_grid(entry)
    factory = entry if isinstance(entry, optax.GradientTransformation) else grid.factory
    described = describe(f"optimizer {family!r}", factory)
    if grid.per_run is not None:  # before runs had keys of their own, such a factory drew the same for every seed
        described["per_run"] = grid.per_run
    return {
        "factory": described,
        "points": [{k: plain(family, v) for k, v in point.items()} for point in grid.points],
    }


def plain(field: str, value: Any) -> Any:
    """A value as plain JSON.

    Raises:
      ValueError: if it has no plain description.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, jax.Array)):
        array = np.asarray(value)
        if array.ndim == 0:
            return array.item()
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return {"array": [str(array.dtype), list(array.shape), digest]}
    if isinstance(value, Mapping):
        return {str(k): plain(field, v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A field that is younger than stored results is left out at its default: those stay recognised.
        own = {
            f.name: plain(field, getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not (f.metadata.get("added") and getattr(value, f.name) == f.default)
        }
        return {**own, "type": f"{type(value).__module__}.{type(value).__qualname__}"} if callable(value) else own
    if callable(value) or isinstance(value, optax.GradientTransformation):
        return describe(field, value)
    if isinstance(value, (tuple, list)):
        return [plain(field, v) for v in value]
    raise ValueError(f"{field} holds {value!r}, which has no plain description to recognise stored results by")


def describe(field: str, value: Any) -> dict[str, Any]:
    """A callable or transform as plain JSON: names, source hash and what it closed over.

    Raises:
      ValueError: for a lambda: two lambdas cannot be told apart by name.
    """
    if isinstance(value, optax.GradientTransformation):
        return {"init": describe(field, value.init), "update": describe(field, value.update)}
    if isinstance(value, functools.partial):
        inner = describe(field, value.func)
        return {**inner, "args": plain(field, list(value.args)), "keywords": plain(field, value.keywords)}
    if inspect.ismethod(value):
        return {**describe(field, value.__func__), "self": plain(field, value.__self__)}
    function = inspect.unwrap(value)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", None) or type(function).__module__
    if "<lambda>" in name and module.split(".")[0] not in _PACKAGED:
        raise ValueError(f"{field} is a lambda, which out= cannot recognise again: give it a name with def")
    out: dict[str, Any] = {"name": f"{module}.{name}"}
    if module.split(".")[0] not in _PACKAGED:
        out["source"] = _source_hash(function)
    state = _closure(function)
    if not isinstance(function, type) and not hasattr(function, "__code__"):
        state |= {name: value for name, value in getattr(function, "__dict__", {}).items() if name != "__wrapped__"}
    if module.split(".")[0] not in _PACKAGED or "<locals>" in name:
        names = getattr(getattr(function, "__code__", None), "co_varnames", ())
        defaults = getattr(function, "__defaults__", None) or ()
        count = getattr(getattr(function, "__code__", None), "co_argcount", 0)
        state |= dict(zip(names[count - len(defaults) : count], defaults))
        state |= getattr(function, "__kwdefaults__", None) or {}
    if state:
        out["state"] = {k: plain(field, v) for k, v in state.items()}
    return out


_PACKAGED = ("jax", "optax", "flax", "jaxsign")


def _source_hash(function: Callable) -> str:
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = repr((code.co_code, code.co_consts)) if code else repr(type(function))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _closure(function: Callable) -> dict[str, Any]:
    """Names and values that a function closed over, modules left out."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not cells:
        return {}
    out = {}
    for name, cell in zip(code.co_freevars, cells):
        try:
            value = cell.cell_contents
        except ValueError:  # a recursive function's own, still empty cell
            continue
        if value is not function and not inspect.ismodule(value):
            out[name] = value
    return out
