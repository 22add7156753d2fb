"""Are a manifest and the index of a trajectory well-formed? Types, ranges and agreement, checked before any use."""

import hashlib
import itertools
import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxsign.store import times
from jaxsign.store.levels import coordinates as level_coordinates
from jaxsign.validation.values import LONGEST, RUNS

#: `(where, value)` raises Wrong; `where` names the value's place, such as "plan.block".
Check = Callable[[str, Any], None]


class Wrong(Exception):
    """An illegal entry; the message names it, its value and the legal range."""


def _refuse(where: str, legal: str, value: Any) -> None:
    raise Wrong(f"{where} must be {legal}, got {reprlib.repr(value)}")


def _check(legal: str, is_legal: Callable[[Any], Any]) -> Check:
    def check(where: str, value: Any) -> None:
        if not is_legal(value):
            _refuse(where, legal, value)

    return check


def _whole(low: int = 0, high: int = 2**63 - 1) -> Check:
    return _check(f"an int in [{low}, {high}]", lambda value: type(value) is int and low <= value <= high)


def _text_like(pattern: str, legal: str) -> Check:
    return _check(legal, lambda value: isinstance(value, str) and re.fullmatch(pattern, value))


def _moment(where: str, value: Any) -> None:
    _text(where, value)
    try:
        year = times.parse(value).year
    except ValueError:
        year = 0
    if year < 1970:
        _refuse(where, "a time such as '2026-01-31T12:00:00Z'", value)


def _list(item: Check, least: int = 0, most: int = LONGEST) -> Check:
    def check(where: str, value: Any) -> None:
        if type(value) is not list or not least <= len(value) <= most:
            _refuse(where, f"a list of {least} to {most} entries", value)
        for i, one in enumerate(value):
            item(f"{where}[{i}]" if isinstance(one, (list, dict)) else where, one)

    return check


def _table(item: Check, name: Check | None = None, least: int = 0) -> Check:
    def check(where: str, value: Any) -> None:
        if type(value) is not dict or len(value) < least:
            _refuse(where, "a table with entries" if least else "a table", value)
        for key, one in value.items():
            if name is not None:
                name(f"a name in {where}", key)
            item(f"{where}.{key}", one)

    return check


def _record(needed: Mapping[str, Check], also: Mapping[str, Check] | None = None) -> Check:
    """A table that must have some entries and may have others; entries that are not named here may be anything."""

    def check(where: str, value: Any) -> None:
        _object(where, value)
        for key in needed:
            if key not in value:
                raise Wrong(f"{where}.{key}".lstrip(".") + " is missing")
        for key, item in {**needed, **(also or {})}.items():
            if key in value:
                item(f"{where}.{key}".lstrip("."), value[key])

    return check


def _optional(item: Check) -> Check:
    def check(where: str, value: Any) -> None:
        if value is not None:
            item(where, value)

    return check


def _either(one: Check, other: Check) -> Check:
    def check(where: str, value: Any) -> None:
        try:
            one(where, value)
        except Wrong:
            other(where, value)

    return check


def _anything(where: str, value: Any) -> None:
    pass


_object = _check("a table", lambda value: type(value) is dict)
_text = _check("a text", lambda value: type(value) is str)
_flag = _check("true or false", lambda value: type(value) is bool)
_number = _check("a number", lambda value: type(value) in (int, float))
_seconds = _check("a number of seconds in [0, 1e9)", lambda value: type(value) in (int, float) and 0 <= value < 1e9)
_texts = _table(_optional(_text))
_crc = _whole(0, 2**32 - 1)
_count = _whole(1)
_digest = _text_like("[0-9a-f]{64}", "64 hexadecimal digits")
#: Names of a variable, which is a folder of the store, and of a file in the store: neither leads out of the store.
_name = _text_like(r"(?!\.{1,2}$)[^/\0]+", "a name without slashes")
_file = _text_like(r"(?:(?!\.{1,2}/)[^/\0]+/)*(?!\.{1,2}$)[^/\0]+", "a file inside the store")

_DEFINITION = _record(
    {
        "system": _record({"name": _text}), "engine": _optional(_text), "problem": _optional(_object),
        "hyper": _optional(_object), "steps": _whole(1, 2**31 - 1),
        "record": _list(_whole(0, 2**31 - 1), 1), "test": _list(_whole(0, 2**31 - 1)),
        "observables": _optional(_list(_either(_text, _record({"name": _text})))),
        "trainable": _optional(_list(_text)), "summary": _optional(_object), "keep_trace": _flag, "shared": _anything,
        "trajectory": _optional(_either(_text, _list(_whole(0, 2**31 - 1), 1))),
        "optimizers": _table(_record({"factory": _object, "points": _list(_object, 1)}), least=1),
        "axes": _list(_record({"members": _list(_text, 1), "values": _list(_list(_anything, 1), 1)})),
        "seeds": _list(_whole(0, 2**32 - 1), 1), "dtype": _text,
    },
    {"levels": _list(_number), "threefry_partitionable": _flag, "hyper_code": _object},
)  # fmt: skip
_PLAN = _record({
    "block": _list(_count, 2), "runs": _whole(1, LONGEST), "records": _count, "memory": _count, "devices": _count,
    "groups": _list(_record(
        {
            "family": _text, "fixed": _table(_list(_text)), "how": _list(_anything), "lane_width": _whole(1, LONGEST),
            "points": _list(_object, 1), "degrees": _list(_record({"p": _number})), "task": _text, "compact": _flag,
        },
        {"static": _texts},
    ), 1),
})  # fmt: skip
_SESSION = _record(
    {"seconds": _seconds, "finished": _moment, "versions": _texts},
    {
        "devices": _text,
        "shard": _text,
        "pid": _count,
        "host": _text,
        "command": _text,
        "device": _texts,
        "compile_seconds": _seconds,
        "compiled": _record({"programs": _whole(), "families": _table(_seconds)}),
    },
)
_ACCEPTED = _record({"reason": _text, "differences": _list(_text), "date": _moment}, {"versions": _texts})
_COMPUTATION = _record({
    "engine": _text,
    "entries": _table(_record({"programs": _table(_table(_text)), "sources": _object, "with": _texts})),
})  # fmt: skip
_RUNS = _record({}, dict.fromkeys(("total", "finished", "diverged", "not_run"), _whole(0, RUNS)))
_MANIFEST = _record(
    {
        "definition": _DEFINITION, "hash": _digest, "order": _list(_list(_whole(0, LONGEST), 1), 2), "plan": _PLAN,
        "crc32": _table(_crc, _file, 1), "chunks": _table(_list(_count, 2, 64), _name, 1), "base": _table(_number),
        "runs": _RUNS, "wall_seconds": _seconds, "sessions": _list(_SESSION), "versions": _texts, "finished": _moment,
        "flags": _record({"XLA_FLAGS": _text}), "device": _texts,
    },
    {
        "starts": _list(_record(
            dict.fromkeys(("jax", "jaxlib", "optax", "jaxsign", "code", "device", "cpu", "flags"), _optional(_text)),
            {"devices": _optional(_text)},
        )),
        "base_hash": _digest, "computation": _COMPUTATION, "accepted": _list(_ACCEPTED), "padded": _texts,
        "id": _text_like("[0-9a-f]{32}", "32 hexadecimal digits"), "epoch": _count, "revision": _count,
        "lineage": _list(_text_like("[0-9a-f]{32}", "32 hexadecimal digits"), 1),
        "devices": _text, "dtype": _text, "resume": _text, "command": _text, "host": _text, "matmul_precision": _text,
        "compile_seconds": _seconds,
    },
)  # fmt: skip


#: runs.json of a unit of trajectories.
_INDEX = _record(
    {
        "kind": _text_like("signs|features|log2|steps", "signs, features, log2 or steps"),
        "runs": _list(_list(_whole(), 1), 1),
        "leaves": _list(_list(_anything, 3, 3)), "start": _list(_crc),
        "segments": _list(_text_like(r"\d{9}\.segment", "a segment's name")),
        "trained": _list(_text),
    },
    {
        "keyframe_every": _optional(_count), "features": _list(_list(_anything, 2, 2)), "replaced": _list(_whole()),
        "finished": _number, "unit": _text, "directory": _text,
    },
)  # fmt: skip


def index_wrong(about: Any) -> str:
    """The first illegal entry in the index of a unit of trajectories, in words; "" if there is none.

    Examples:
      >>> index_wrong({"kind": "signs", "runs": [0]})
      'leaves is missing'
    """
    try:
        _INDEX("", about)
        if len(about["start"]) != len(about["runs"]):
            raise Wrong(f"start must have {len(about['runs'])} entries, one a run, got {len(about['start'])}")
        for leaf in [*about["leaves"], *([["", *leaf] for leaf in about.get("features", ())])]:
            _text("leaves", leaf[0])
            _list(_whole())("leaves", leaf[1])
            _text_like("[<>|=]?[a-z][0-9]+", "the name of a dtype")("leaves", leaf[2])
    except Wrong as error:
        return str(error)
    return ""


def content_hash(definition: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a definition.

    Examples:
      >>> content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
      True
    """
    return hashlib.sha256(json.dumps(definition, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def wrong(manifest: Mapping[str, Any]) -> str:
    """The first illegal entry of a manifest, in words; "" if there is none. Unknown entries may be anything.

    Examples:
      >>> wrong({"definition": {}})
      'hash is missing'
    """
    try:
        _MANIFEST("", manifest)
        _check_definition(manifest["definition"])
        _check_parts(manifest)
    except Wrong as error:
        return str(error)
    return ""


def _check_definition(definition: Mapping[str, Any]) -> None:
    """Checks a definition beyond its types: steps in order, distinct seeds, points with a value for every member."""
    steps, record = definition["steps"], definition["record"]
    if record[-1] > steps or any(a >= b for a, b in itertools.pairwise(record)):
        _refuse("definition.record", f"increasing steps up to {steps}", record)
    if not {*definition["test"]} <= {*record}:
        _refuse("definition.test", "steps of definition.record", definition["test"])
    if len({*definition["seeds"]}) < len(definition["seeds"]):
        _refuse("definition.seeds", "seeds that differ", definition["seeds"])
    for axis in definition["axes"]:
        for point in axis["values"]:
            if len(point) != len(axis["members"]):
                _refuse(f"definition.axes: {axis['members'][0]}", "a value for every member", point)


def _check_parts(manifest: Mapping[str, Any]) -> None:
    """Checks the parts of a manifest against one another."""
    definition, order, plan = manifest["definition"], manifest["order"], manifest["plan"]
    if manifest["hash"] != content_hash(definition):
        raise Wrong("hash is not that of its definition")
    points = sum(len(entry["points"]) for entry in definition["optimizers"].values())
    sizes = [*(len(axis["values"]) for axis in definition["axes"]), points, len(definition["seeds"])]
    for places, size in zip(order, sizes):
        if sorted(places) != list(range(size)):
            _refuse("order", f"each of 0 to {size - 1} once", places)
    runs = math.prod(sizes)
    if len(order) != len(sizes) or runs > RUNS:
        _refuse("order", f"a list for each of {len(sizes)} dimensions, of {RUNS} runs at most", [len(o) for o in order])
    if len(plan["block"]) != len(sizes):
        _refuse("plan.block", f"{len(sizes)} extents", plan["block"])
    for name, chunk in manifest["chunks"].items():
        if chunk[: len(sizes)] != plan["block"]:
            _refuse(f"chunks.{name}", f"a block {plan['block']} and the variable's own extents", chunk)
    counts = manifest["runs"]
    if len(counts) == 4 and counts["total"] != counts["finished"] + counts["diverged"] + counts["not_run"]:
        _refuse("runs", "counts that add up to their total", counts)
    hyper = definition["hyper"] or {}
    for name, value in manifest["base"].items():
        defined = hyper.get(name)
        if isinstance(defined, (int, float)) and defined == defined and float(defined) != float(value):
            _refuse(f"base.{name}", f"the definition's {defined}", value)
    for group in plan["groups"]:
        if group["family"] not in definition["optimizers"]:
            _refuse("plan.groups: family", f"one of {sorted(definition['optimizers'])}", group["family"])
        if len(group["degrees"] or group["points"]) != len(group["points"]):
            _refuse("plan.groups: degrees", "one for every point", group["degrees"])


def contradiction(manifest: Mapping[str, Any], arrays: Path) -> str:
    """A contradiction between a manifest and the arrays beside it, in words; "" if there is none.

    Shapes, chunks and coordinates are compared with the definition and its order, so that no number is read under the
    label of another one. The arrays' files must have the manifest's CRCs.

    Args:
      manifest: well-formed, see `wrong`.
      arrays: the store's folder.

    Raises:
      Exception: many kinds, raised by zarr about metadata that cannot be read.
    """
    import zarr

    root: Any = zarr.open_group(arrays, mode="r", zarr_format=3, use_consolidated=False)
    arrays_by_name = dict(root.arrays())
    definition, order = manifest["definition"], manifest["order"]
    sizes, dims = [len(places) for places in order], [axis["members"][0] for axis in definition["axes"]]
    dims += ["optimizer", "seed"]
    for name, chunk in manifest["chunks"].items():
        if name not in arrays_by_name:
            return f"chunks names {name!r}, which the store does not have"
        array = arrays_by_name[name]
        names = tuple(array.metadata.dimension_names or ())
        if list(array.shape[: len(sizes)]) != sizes or list(names[: len(sizes)]) != dims:
            return f"order has {dict(zip(dims, sizes))}, the array {name!r} {dict(zip(names, array.shape))}"
        if list(array.chunks) != chunk:
            return f"chunks.{name} is {chunk}, its array has {list(array.chunks)}"
        if "step" in names and array.shape[names.index("step")] != len(definition["record"]):
            return f"definition.record has {len(definition['record'])} steps, the array {name!r} another number"
        steps = min(manifest["plan"]["records"], len(definition["record"]))
        if "step" in names and chunk[names.index("step")] != steps:
            return f"plan.records is {manifest['plan']['records']}, the array {name!r} has other chunks"
    for name, array in arrays_by_name.items():
        if name not in manifest["chunks"] and list(array.metadata.dimension_names or ())[: len(dims)] == dims:
            return f"chunks lacks {name!r}, which the store has"
    for name, (dim, values) in _labels(definition).items():
        array = arrays_by_name.get(name)
        if array is None or tuple(array.metadata.dimension_names or ()) != (dim,):
            continue  # the version that wrote it used another name
        places = order[dims.index(dim)] if dim in dims else range(len(values))
        stored = np.asarray(array[...]).tolist()
        if len(stored) != len(values) or not all(_same(label, values[i]) for label, i in zip(stored, places)):
            return f"the stored coordinate {name!r} is not what definition and order say"
    return ""


def _labels(definition: Mapping[str, Any]) -> dict[str, tuple[str, list[Any]]]:
    """{coordinate: (its dimension, its values in the definition's order)} of coordinates with plain JSON values."""
    labels: dict[str, tuple[str, list[Any]]] = {}
    points = [(family, p) for family, entry in definition["optimizers"].items() for p in entry["points"]]
    for keyword in dict.fromkeys(keyword for _, point in points for keyword in point):
        values = [point.get(keyword) for _, point in points]
        labels[keyword] = labels[f"optimizer_{keyword}"] = ("optimizer", values)
    for axis in definition["axes"]:
        for i, name in enumerate(axis["members"]):
            labels[name] = (axis["members"][0], [point[i] for point in axis["values"]])
    labels["family"] = ("optimizer", [family for family, _ in points])
    labels |= {"seed": ("seed", definition["seeds"]), "step": ("step", definition["record"])}
    for name, (dims, values, _) in level_coordinates(tuple(definition.get("levels", ()))).items():
        labels[name] = (dims[0], values.tolist())
    return labels


def _same(stored: Any, value: Any) -> bool:
    """Whether a stored coordinate equals a value of the definition; values stored as words are not compared."""
    if isinstance(value, (list, dict)) or (isinstance(stored, str) and not isinstance(value, str)):
        return True
    missing = stored != stored
    return bool(stored == value or (missing and (value is None or value != value)))
