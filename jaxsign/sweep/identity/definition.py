"""The definition of a sweep as plain JSON, by which stored results are recognised."""

import dataclasses
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxsign.compilation import filled, module_of, packaged
from jaxsign.optimizers.grid import Grid, as_grid
from jaxsign.store.environment import partitionable
from jaxsign.store.schema import content_hash as content_hash
from jaxsign.sweep.identity.sources import Reached
from jaxsign.sweep.sweep import Sweep
from jaxsign.training.task import Task

#: Entries that describe code; all others are values.
CODE = ("system", "summary", "hyper_code")


def definition(sweep: Sweep, texts: bool = False) -> dict[str, Any]:
    """The sweep as plain JSON: everything that affects its numbers, nothing that affects only its speed.

    A function of an installed package is described by its public name and its closure; versions are recorded beside
    the definition. A user's function is described by its name and a digest of all the user's code that it reaches.

    Args:
      sweep: a Sweep.
      texts: describe the user's functions as version 0.1 did: by the hash of their text alone.

    Returns:
      A dict of str, numbers, lists and dicts.

    Raises:
      ValueError: for a number or an array without a plain description, or an observed function without a name.
    """
    say = functools.partial(describe, texts=texts)
    out = {
        "system": say("system", sweep.system),
        "engine": sweep.engine,
        "problem": plain("problem", sweep.problem, texts),
        "hyper": plain("hyper", sweep.hyper, texts),
        "steps": sweep.schedule.steps,
        "record": sweep.schedule.record.tolist(),
        "test": sweep.schedule.record[sweep.schedule.test].tolist(),
        **({"levels": list(sweep.crossed)} if sweep.crossed else {}),
        "observables": None if sweep.observables is None else [_observable(o, texts) for o in sweep.observables],
        "trainable": None if sweep.trainable is None else list(sweep.trainable),
        "summary": None if sweep.summary is None else say("summary", sweep.summary),
        "keep_trace": sweep.keep_trace,
        "shared": None if sweep.shared is None else plain("shared", sweep.shared),
        "trajectory": plain("trajectory", sweep.trajectory),
        "optimizers": {family: _optimizer(family, entry, texts) for family, entry in sweep.optimizers.items()},
        "axes": [
            {"members": list(a.members), "values": [[plain(a.name, v) for v in point] for point in a.values]}
            for a in sweep.grid_axes
        ],
        "seeds": list(sweep.seeds),
        "dtype": np.dtype(jax.dtypes.canonicalize_dtype(float)).name,
        "threefry_partitionable": partitionable(),
    }
    derived = getattr(type(sweep.hyper), "derived", {})
    if any(name in derived for axis in sweep.grid_axes for name in axis.members) and not texts:
        # Derived axes are computed on the host, outside all traced programs, so the code of these classes is digested.
        digests = [Reached().digest(kind) for kind in derived_by(sweep)]
        if any(digests):
            out["hyper_code"] = {"name": type(sweep.hyper).__qualname__, "source": "".join(digests)}
    return out


def derived_by(sweep: Sweep) -> list[type]:
    """The classes that compute derived axes."""
    return [type(sweep.hyper), type(sweep.problem)]


def observed_name(description: Any) -> str:
    """The name of an observable."""
    return description["name"].rpartition(".")[2] if isinstance(description, Mapping) else description


def numbered(values: Sequence[Any]) -> list[str]:
    """Values as canonical JSON; equal ones, such as functions of one name, are distinguished by their order."""
    out: list[str] = []
    counts: dict[str, int] = {}
    for text in (json.dumps(value, sort_keys=True) for value in values):
        counts[text] = counts.get(text, 0) + 1
        out.append(f"{text}#{counts[text]}" if counts[text] > 1 else text)
    return out


def code(definition: Mapping[str, Any]) -> dict[str, Any]:
    """{entry: description} of the code of a definition: "system", "summary", "observables.NAME", "optimizers.FAMILY".

    Functions among an optimizer's keywords stand beside its factory, under the text of their point.
    """
    out = {name: definition[name] for name in CODE if definition.get(name) is not None}
    for one in definition["observables"] or ():
        if isinstance(one, Mapping):
            out[f"observables.{observed_name(one)}"] = one
    for family, entry in definition["optimizers"].items():
        points = dict(zip(numbered([skeleton(p) for p in entry["points"]]), entry["points"]))
        users = {text: point for text, point in points.items() if any(isinstance(v, Mapping) for v in point.values())}
        out[f"optimizers.{family}"] = {"factory": entry["factory"], **({"points": users} if users else {})}
    return out


def opaque(description: Any) -> bool:
    """Whether a description contains code of the user, or a value without a plain description."""
    if isinstance(description, Mapping):
        return "source" in description or "undescribed" in description or any(map(opaque, description.values()))
    return isinstance(description, list) and any(map(opaque, description))


def neutral(description: Any) -> Any:
    """A description without irrelevant names: a user's function is its digest, a package's has no module.

    Examples:
      >>> neutral({"name": "optax._src.alias.sgd"}), neutral({"name": "mine.loss", "source": "12ab"})
      ({'name': 'optax.sgd'}, {'source': '12ab'})
    """
    if isinstance(description, Mapping):
        if "source" in description:
            rest = {k: v for k, v in description.items() if k not in ("name", "type", "state")}
            return {k: neutral(v) for k, v in rest.items()}
        out = {k: neutral(v) for k, v in description.items()}
        return out | {k: short_name(out[k]) for k in ("name", "type") if isinstance(out.get(k), str)}
    return [neutral(v) for v in description] if isinstance(description, list) else description


def skeleton(description: Any) -> Any:
    """The description by which a point of an optimizer is recognised: values, and the names of users' functions.

    Examples:
      >>> skeleton({"rate": {"name": "mine.schedule", "source": "12ab", "state": {"peak": 1.0}}, "b1": 0.9})
      {'rate': {'name': 'schedule'}, 'b1': 0.9}
    """
    if isinstance(description, Mapping):
        if "source" in description:
            rest = {k: skeleton(v) for k, v in description.items() if k not in ("source", "state", "type")}
            return {**rest, "name": str(description.get("name", description.get("type"))).rpartition(".")[2]}
        out = {k: skeleton(v) for k, v in description.items()}
        return out | {k: short_name(out[k]) for k in ("name", "type") if isinstance(out.get(k), str)}
    if (
        type(description) is int and abs(description) < 2**53
    ):  # Optax turns a schedule's counts into floats when it runs
        return float(description)
    return [skeleton(v) for v in description] if isinstance(description, list) else description


def short_name(name: str) -> str:
    """A name of a package's function without the modules between, which differ by version.

    Examples:
      >>> short_name("optax._src.alias.sgd"), short_name("optax._src.base.chain.<locals>.init_fn")
      ('optax.sgd', 'optax.chain.<locals>.init_fn')
    """
    first, dot, inner = name.partition(".<locals>")
    top, _, rest = first.partition(".")
    return f"{top}.{rest.rpartition('.')[2]}{dot}{inner}" if rest else name


def _observable(value: Any, texts: bool) -> Any:
    if callable(value) and getattr(value, "__name__", "") == "<lambda>":
        raise ValueError("observables is a lambda, whose results have no name: give it a name with def")
    return describe("observables", value, texts) if callable(value) else value


def _optimizer(family: str, entry: Any, texts: bool) -> dict[str, Any]:
    grid: Grid = as_grid(entry)
    factory = entry if isinstance(entry, optax.GradientTransformation) else grid.factory
    described = describe(f"optimizer {family!r}", factory, texts)
    if grid.per_run is not None:  # distinguishes them from results in which such a factory drew the same for every seed
        described["per_run"] = grid.per_run
    return {
        "factory": described,
        "points": [plain_point(family, point, texts) for point in grid.points],
    }


def plain_point(family: str, point: Mapping[str, Any], texts: bool = False) -> dict[str, Any]:
    """The keywords of one point of an optimizer as plain JSON, functions among them described."""
    return {k: _lenient(v, texts) if callable(v) else plain(family, v) for k, v in point.items()}


def plain(field: str, value: Any, texts: bool = False) -> Any:
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
        return {str(k): plain(field, v, texts) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Fields marked `added` are omitted at their default, so that older results still match.
        fields = {
            f.name: plain(field, getattr(value, f.name), texts)
            for f in dataclasses.fields(value)
            if not (f.metadata.get("added") and getattr(value, f.name) == f.default)
        }
        return _callable_record(value, fields, texts) if callable(value) else fields
    if callable(value) or isinstance(value, optax.GradientTransformation):
        return describe(field, value, texts)
    if isinstance(value, (tuple, list)):
        return [plain(field, v, texts) for v in value]
    raise ValueError(f"{field} holds {value!r}, which has no plain description to recognise stored results by")


def describe(field: str, value: Any, texts: bool = False) -> dict[str, Any]:
    """A callable or transform as plain JSON: its name, a digest of the user's code in it, its closure.

    Values without a plain description are named by their type, since the traced programs depend on them anyway.

    Args:
      field: name of the value, for messages.
      value: a callable or a transform.
      texts: hash the text of the user's functions, as version 0.1 did, instead of digesting all the code they reach.
    """
    if isinstance(value, optax.GradientTransformation):
        return {"init": describe(field, value.init, texts), "update": describe(field, value.update, texts)}
    if isinstance(value, functools.partial):
        inner = describe(field, value.func, texts)
        return {**inner, "args": _lenient(list(value.args), texts), "keywords": _lenient(value.keywords, texts)}
    if inspect.ismethod(value):
        return {**describe(field, value.__func__, texts), "self": _lenient(value.__self__, texts)}
    function = inspect.unwrap(value)
    users = not packaged(module_of(function) if hasattr(function, "__qualname__") else type(function).__module__)
    out: dict[str, Any] = {"name": public_name(function)}
    if users:
        out["source"] = _text_hash(function) if texts else Reached().digest(value)
    state = _closure(function)
    if not isinstance(function, type) and not hasattr(function, "__code__"):
        state |= {name: value for name, value in getattr(function, "__dict__", {}).items() if name != "__wrapped__"}
    if users or "<locals>" in out["name"]:
        names = getattr(getattr(function, "__code__", None), "co_varnames", ())
        defaults = getattr(function, "__defaults__", None) or ()
        count = getattr(getattr(function, "__code__", None), "co_argcount", 0)
        state |= dict(zip(names[count - len(defaults) : count], defaults))
        state |= getattr(function, "__kwdefaults__", None) or {}
    if users and not texts:  # the digest holds the rest
        state = {k: v for k, v in state.items() if isinstance(v, (bool, int, float, str, np.generic, type(None)))}
    if state:
        out["state"] = {k: _lenient(v, texts) for k, v in state.items()}
    return out


def _lenient(value: Any, texts: bool = False) -> Any:
    """A value inside a function as plain JSON; its type if it has no plain description."""
    if isinstance(value, Mapping):
        return {_key(k): _lenient(v, texts) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, optax.GradientTransformation):
        return [_lenient(v, texts) for v in value]
    if isinstance(value, (np.ndarray, jax.Array)) and not _numbers(value):
        return {"undescribed": type(value).__qualname__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _lenient(getattr(value, f.name, None), texts) for f in dataclasses.fields(value)}
        if isinstance(value, Task) and not texts:  # a Task that does not use a field is the same if there is none
            fields = {name: field for name, field in fields.items() if field is not None and name != "reduction"}
        return _callable_record(value, fields, texts) if callable(value) else fields
    if callable(value) or isinstance(value, optax.GradientTransformation):
        return describe("", value, texts)
    try:
        return plain("", value)
    except ValueError:
        return {"undescribed": type(value).__qualname__}


def _callable_record(value: Any, fields: dict[str, Any], texts: bool) -> dict[str, Any]:
    """A callable dataclass: its fields, its class, and a digest of its code if it is the user's."""
    code = {} if texts or packaged(type(value).__module__) else {"source": Reached().digest(value)}
    return {**fields, "type": public_name(type(value)), **code}


def _numbers(value: Any) -> bool:
    """Whether an array is concrete and holds numbers, which a key does not."""
    if isinstance(value, jax.core.Tracer) or jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return False
    return np.dtype(value.dtype).kind in "biufcV"


def _key(key: Any) -> str:
    return str(key) if isinstance(key, (str, int, float, bool, type(None))) else type(key).__qualname__


def public_name(value: Any) -> str:
    """Module and name of a function or class; for a package, the shortest module that exports it by this name.

    Examples:
      >>> import jaxsign, optax
      >>> public_name(jaxsign.two_layer), public_name(optax.sgd)
      ('jaxsign.two_layer', 'optax.sgd')
    """
    named = value if hasattr(value, "__qualname__") else type(value)
    module, name = module_of(value), named.__qualname__
    parts = module.split(".")
    for end in range(1, len(parts)) if packaged(module) else ():
        prefix = ".".join(parts[:end])
        if getattr(sys.modules.get(prefix), name, None) is named:
            return f"{prefix}.{name}"
    return f"{module}.{name}"


def _text_hash(function: Callable) -> str:
    """The hash of a function's text, comments included, by which version 0.1 recognised it."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = repr((code.co_code, code.co_consts)) if code else type(function).__qualname__
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _closure(function: Callable) -> dict[str, Any]:
    """Names and values that a function closed over, modules left out."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not cells:
        return {}
    out = {}
    for name, cell in zip(code.co_freevars, cells):
        if filled(cell) and cell.cell_contents is not function and not inspect.ismodule(cell.cell_contents):
            out[name] = cell.cell_contents
    return out
