"""Whether a stored sweep is the requested one: equal values, code that computes the same, accepted changes."""

import collections
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxsign.store.environment import package_versions
from jaxsign.sweep.identity.definition import (
    CODE,
    code,
    content_hash,
    definition,
    derived_by,
    neutral,
    numbered,
    observed_name,
    opaque,
    short_name,
    skeleton,
)
from jaxsign.sweep.identity.sources import Reached
from jaxsign.sweep.identity.tracing import programs
from jaxsign.sweep.identity.versions import engine_digest
from jaxsign.sweep.sweep import Sweep

#: Entries of a definition that describe the grid, which may be extended.
GRID = ("axes", "optimizers", "seeds")
#: Values of entries that a definition of an older version may lack.
DEFAULTS = {"threefry_partitionable": True}
#: Maximum number of differences in a message.
LINES = 6


class Match(NamedTuple):
    """How the requested sweep relates to a stored one.

    Args:
      order: for every dimension of (axes, optimizer, seed), the sweep's index of every stored point, or -1.
      part: whether it is a part of the stored sweep.
      changed: a line for every change of code, all of them accepted.
      definition: the definition to store.
      computation: the fingerprints to store.
      notes: lines about versions that differ and code that cannot be compared.
    """

    order: list[list[int]]
    part: bool
    changed: list[str]
    definition: dict[str, Any]
    computation: dict[str, Any]
    notes: list[str]

    def grown(self, stored: Mapping[str, Any]) -> bool:
        """Whether the store must change its shape or order."""
        return not self.part and self.order != stored["order"]


def compare(
    path: str, stored: Mapping[str, Any], sweep: Sweep, accept: str | None = None, computation: Any = None
) -> Match:
    """Compares a sweep with a stored one.

    Values must be equal. Code is compared by the programs that it traces to. If these differ and another version of
    JAX, Optax or jaxsign traced the stored ones, the sources of the user's own functions are compared instead.

    Args:
      path: results directory, for messages.
      stored: its manifest.
      sweep: the requested sweep.
      accept: reason for which changes of code are accepted, or None.
      computation: the sweep's `fingerprints`, if they are known.

    Raises:
      ValueError: for another definition, with the differences.
    """
    described = definition(sweep)
    by_text = "computation" not in stored  # version 0.1 stored names, numbers and hashes of texts, but no fingerprints
    compared = definition(sweep, texts=True) if by_text else described
    order = extension(path, stored, compared)
    computation = computation or fingerprints(sweep, described)
    lines: list[str] = []
    values: list[str] = []
    notes: list[str] = []
    versions = package_versions()
    same_packages = all(stored["versions"].get(name) == versions[name] for name in ("jax", "jaxlib", "optax"))
    same_engine = not by_text and stored["computation"]["engine"] == computation["engine"]
    if by_text:
        lines = _text_differences(code(stored["definition"]), code(compared), same_packages)
        if any(map(opaque, code(compared).values())):
            notes.append(
                "it was stored by version 0.1, so only the text of your functions was compared, not what it calls"
            )
    else:
        old, new = code(stored["definition"]), code(described)
        for entry in dict.fromkeys([*old, *new]):
            families = entry.startswith("optimizers.")
            if families and not (entry in old and entry in new):
                continue  # an optimizer that is added, or not requested
            changes, note = _entry_differences(
                entry, old.get(entry), new.get(entry), stored["computation"]["entries"].get(entry, {}),
                computation["entries"].get(entry, {}), same_engine, same_packages,
            )  # fmt: skip
            lines += changes
            notes += [note] if note and note not in notes else []
            if changes and _are_values(old.get(entry), new.get(entry), same_packages and same_engine):
                values += changes
    if values:
        raise ValueError(
            f"out={path!r} belongs to another definition: {_few(_by_the_end(values))} (a change of values cannot be "
            "accepted: give an optimizer another name, or take another out)"
        )
    if lines and accept is None:
        raise ValueError(
            f"out={path!r} belongs to another definition: {_few(lines)} "
            '(accept="reason" takes a change of code and keeps it in the manifest)'
        )
    part = any(i < 0 for indices in order for i in indices)
    if part:
        described = _merged(stored["definition"], described if not by_text or lines else stored["definition"])
    if not by_text:
        computation = _merged_computation(stored["computation"], computation)
    return Match(order, part, lines, described, computation, notes)


def _are_values(old: Any, new: Any, same_versions: bool) -> bool:
    """Whether two descriptions of an entry differ in values: no code of the user is in them, and none of a package.

    Versions of packages build the same transform in other ways; where nothing but numbers differs, it is no version.

    Examples:
      >>> one, two = {"name": "optax.sgd", "state": {"rate": 0.1}}, {"name": "optax.sgd", "state": {"rate": 0.2}}
      >>> _are_values(one, two, False), _are_values(one, {"name": "optax.gd"}, False), _are_values(one, {}, True)
      (True, False, True)
    """
    plain = (_without_numbers(neutral(description)) for description in (old, new))
    return not opaque([old, new]) and (same_versions or len({json.dumps(one) for one in plain}) == 1)


def _without_numbers(description: Any) -> Any:
    """A description with 0 in the place of every number.

    Examples:
      >>> _without_numbers({"name": "optax.sgd", "state": [0.1, True]})
      {'name': 'optax.sgd', 'state': [0, True]}
    """
    if isinstance(description, Mapping):
        return {name: _without_numbers(value) for name, value in description.items()}
    if isinstance(description, list):
        return [_without_numbers(value) for value in description]
    return 0 if type(description) in (int, float) else description


def _by_the_end(lines: Sequence[str]) -> list[str]:
    """Lines without the way through a package's closures, each once.

    Examples:
      >>> _by_the_end(["optimizers.a.factory.update.state.update_fns[1].state.step_size: -0.1 -> -0.2"])
      ['optimizers.a: step_size -0.1 -> -0.2']
    """
    short = (re.sub(r"^(optimizers\.[^.]+)\.factory\.(?:[^:]*\.)?(\w+): ", r"\1: \2 ", line) for line in lines)
    return list(dict.fromkeys(re.sub(r"\.<locals>\.\w+", "", line) for line in short))


def _few(lines: Sequence[str]) -> str:
    """The first lines of a difference, and how many there are more."""
    return "; ".join([*lines[:LINES], *([f"and {len(lines) - LINES} more"] if len(lines) > LINES else [])])


def extension(path: str, stored: Mapping[str, Any], new: Mapping[str, Any]) -> list[list[int]]:
    """The order in which a store holds the points of a definition, which may extend the stored one or be a part of it.

    An extension has more values on an axis, more seeds, more optimizers or more points of one; a part has fewer.
    Code is not compared here: see `compare`.

    Args:
      path: results directory, for messages.
      stored: its manifest.
      new: the definition to run.

    Returns:
      For every dimension of (axes, optimizer, seed): the new definition's index of every stored point, -1 for a point
      that it lacks, followed by the indices of new points.

    Raises:
      ValueError: for any other change, with the differences.
    """
    old, order = stored["definition"], stored["order"]
    changed = differences(_values(old), _values(new))
    before, after = ([axis["members"] for axis in d["axes"]] for d in (old, new))
    changed += differences(before, after, "axes")
    if changed:
        if any(line.startswith("steps: ") for line in changed):  # recorded and test steps follow from it
            changed = [line for line in changed if not line.startswith(("record: ", "test: "))]
        raise ValueError(
            f"out={path!r} belongs to another definition: {'; '.join(changed)} (seeds, values of axes and optimizers "
            "can be added, nothing else changed: take another out)"
        )
    out, gone, added = [], [], False
    names = [*(",".join(members) for members in before), "optimizers", "seed"]
    raw = [*(axis["values"] for axis in old["axes"]), None, old["seeds"]]
    for name, old_points, new_points, places, values in zip(names, _points(old), _points(new), order, raw):
        index, texts = {text: i for i, text in enumerate(numbered(new_points))}, numbered(old_points)
        stored_indices = [index.get(texts[i], -1) for i in places]
        rest = sorted({*range(len(new_points))} - {*stored_indices})
        missing = [(values or old_points)[i] for i, new_index in zip(places, stored_indices) if new_index < 0]
        if missing:
            family, point = missing[0] if name == "optimizers" else ("", missing[0])
            gone.append(f"{name}{'.' * bool(family)}{family} {_brief(point)} is stored and not asked for")
        added = added or bool(rest)
        out.append(stored_indices + rest)
    if gone and added:
        raise ValueError(
            f"out={path!r} belongs to another definition: {gone[0]} (a stored sweep may be extended, or read in part, "
            "not both at once)"
        )
    return out


def _values(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a definition that describe neither code nor grid."""
    rest = {k: v for k, v in {**DEFAULTS, **definition}.items() if k not in GRID and k not in CODE}
    if rest.get("observables") is not None:
        rest["observables"] = [observed_name(o) for o in rest["observables"]]
    summary = definition.get("summary")
    return {**{k: neutral(v) for k, v in rest.items()}, "summary": None if summary is None else "a function"}


def _points(definition: Mapping[str, Any]) -> list[list[Any]]:
    """The points of every dimension of (axes, optimizer, seed)."""
    optimizers = [[name, skeleton(p)] for name, entry in definition["optimizers"].items() for p in entry["points"]]
    return [*(skeleton(axis["values"]) for axis in definition["axes"]), optimizers, definition["seeds"]]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Readable lines for the differences between two definitions.

    Examples:
      >>> differences({"steps": 10, "n": 1}, {"steps": 20, "n": 1})
      ['steps: 10 -> 20']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = dict.fromkeys([*old, *new])
        parts = [differences(old.get(n), new.get(n), f"{path}.{n}" if path else n) for n in names]
        return [line for part in parts for line in part]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and _hold_records([*old, *new]):
        parts = [differences(one, two, f"{path}[{i}]") for i, (one, two) in enumerate(zip(old, new))]
        return [line for part in parts for line in part]
    if old == new or json.dumps(old) == json.dumps(new):  # NaN is not equal to itself
        return []
    return [f"{path}: {_brief(old)} -> {_brief(new)}"]


def _hold_records(values: Sequence[Any]) -> bool:
    """Whether a list holds mappings, whose differences are shown one by one."""
    return any(isinstance(value, Mapping) for value in values)


def _brief(value: Any) -> str:
    text = json.dumps(value)
    many = f" ({len(value)} entries)" if isinstance(value, list) else ""
    return text if len(text) <= 80 else f"{text[:60]}...{many}"


def fingerprints(sweep: Sweep, described: Mapping[str, Any]) -> dict[str, Any]:
    """Fingerprints of the computation of a sweep, for its manifest: of every entry with code of the user's own.

    Returns:
      {"engine": digest of jaxsign's own code, "entries": {entry: {"programs", "sources", "with"}}}.
    """
    entries = [name for name, description in code(described).items() if opaque(description)]
    traced = programs(sweep, [name for name in entries if name != "hyper_code"])
    out: dict[str, Any] = {}
    for name in entries:
        reached = Reached()
        for value in _reached(sweep, name):
            reached.digest(value)
        out[name] = {
            "programs": traced.get(name, {}), "sources": reached.parts, "with": _versions(reached.packages),
        }  # fmt: skip
    return {"engine": engine_digest(), "entries": out}


def _reached(sweep: Sweep, entry: str) -> list[Any]:
    """The callables of one entry of code."""
    kind, _, name = entry.partition(".")
    if kind == "observables":
        return [o for o in sweep.observables or () if callable(o) and getattr(o, "__name__", "") == name]
    if kind == "optimizers":
        grid = sweep.grids[name]
        return [grid.factory, *(v for point in grid.points for v in point.values() if callable(v))]
    if kind == "hyper_code":
        return derived_by(sweep)
    return [sweep.system if kind == "system" else sweep.summary]


def _versions(packages: set[str]) -> dict[str, str]:
    """Versions of the packages that some code uses, and the platform: programs may differ between these."""
    names = sorted({"jax", "optax", *packages} - {"jaxsign"} - set(sys.stdlib_module_names))
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in names}
    known = {name: version for name, version in versions.items() if isinstance(version, str)}
    return {**known, "platform": jax.local_devices()[0].platform}


def _entry_differences(
    entry: str,
    old: Any,
    new: Any,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    same_engine: bool,
    same_packages: bool,
) -> tuple[list[str], str]:
    """(lines for the differences in one entry of code, a note if versions prevent comparing its programs)."""
    if old is None or new is None:
        return differences(old and neutral(old), new and neutral(new), entry), ""
    if entry.startswith("optimizers.") and "points" in old and "points" in new:  # only points of both
        common = set(old["points"]) & set(new["points"])
        old, new = ({**d, "points": {k: d["points"][k] for k in common}} for d in (old, new))
    elif entry.startswith("optimizers."):
        old, new = {"factory": old["factory"]}, {"factory": new["factory"]}
    programs_before, programs_after = before.get("programs", {}), after.get("programs", {})
    points = [point for point in programs_after if point in programs_before]
    same_versions = before.get("with") == after.get("with") and same_engine
    if points:
        changed: dict[str, None] = {}
        for point in points:
            one, two = programs_before[point], programs_after[point]
            names = one.keys() & two.keys() if entry.startswith("optimizers.") else one.keys() | two.keys()
            changed |= {name: None for name in sorted(names) if one.get(name) != two.get(name)}
        if not changed:
            return [], ""
        if same_versions:
            values = [line for line in differences(neutral(old), neutral(new), entry) if ".source:" not in line]
            return _reasons(entry, before["sources"], after["sources"]) or values or [_unexplained(entry, changed)], ""
    plain_old, plain_new = neutral(old), neutral(new)
    if plain_old == plain_new:
        note = "its programs differ with these versions; the sources of your functions are the same"
        return [], note if points else ""
    if not (same_engine and same_packages) and _numbers_agree(plain_old, plain_new):
        return [], "what packages made is named otherwise in these versions; its numbers are the same"
    lines = _reasons(entry, before.get("sources", {}), after.get("sources", {}))
    return lines or differences(plain_old, plain_new, entry), ""


def _numbers_agree(old: Any, new: Any) -> bool:
    """Whether two descriptions of a package's function differ only in names and added defaults, as versions do."""

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, Mapping):
            return [leaf for k, v in value.items() if k not in ("name", "type") for leaf in leaves(v)]
        return [leaf for v in value for leaf in leaves(v)] if isinstance(value, list) else [value]

    def called(value: Any) -> Any:
        return (value.get("factory") or value).get("name") if isinstance(value, Mapping) else None

    if called(old) != called(new):
        return False
    one, two = (collections.Counter(json.dumps(x) for x in leaves(v) if x is not None) for v in (old, new))
    return not one - two or not two - one


def _reasons(entry: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lines for the functions and constants of one entry that changed."""
    lines = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        digest = any(isinstance(v, str) and len(v) >= 16 for v in (old, new))
        if name not in after or name not in before:
            lines.append(f"{entry}: {name} is {'gone' if name in before else 'new'}")
        elif digest:
            lines.append(f"{entry}: {name} has changed")
        else:
            lines.append(f"{entry}: {name} {json.dumps(old)} -> {json.dumps(new)}")
    return lines


def _unexplained(entry: str, changed: Iterable[str]) -> str:
    """A line for programs that changed although the code did not."""
    names = list(changed)
    words = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{entry}: the program of {words} has changed, by data that it reads or by a setting of JAX"


def _text_differences(old: Mapping[str, Any], new: Mapping[str, Any], same_packages: bool) -> list[str]:
    """Lines for the differences from a definition of version 0.1, which has hashes of the text of functions."""
    lines = []
    for entry in old.keys() & new.keys():
        one, two = _texts(old[entry]), _texts(new[entry])
        if "points" in one and "points" in two:
            common = set(one["points"]) & set(two["points"])
            one, two = ({**d, "points": {k: d["points"][k] for k in common}} for d in (one, two))
        else:
            one, two = ({k: v for k, v in d.items() if k != "points"} for d in (one, two))
        if same_packages or not _numbers_agree(one, two):
            lines += differences(one, two, entry)
    return sorted(lines)


def _texts(description: Any) -> Any:
    """A description with hashes of texts, without the modules of its names."""
    if isinstance(description, Mapping):
        out = {k: _texts(v) for k, v in description.items()}
        for key in ("name", "type"):
            if isinstance(out.get(key), str):
                out[key] = out[key].rpartition(".")[2] if "source" in out else short_name(out[key])
        return out
    return [_texts(v) for v in description] if isinstance(description, list) else description


def _merged(stored: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A stored definition with the code of a part of it."""
    out = {**stored, **{name: new[name] for name in ("system", "summary", "observables", "hyper_code") if name in new}}
    out["optimizers"] = {family: dict(entry) for family, entry in stored["optimizers"].items()}
    for family, entry in new["optimizers"].items():
        points = dict(zip(numbered([skeleton(p) for p in entry["points"]]), entry["points"]))
        stored_points = out["optimizers"][family]["points"]
        names = numbered([skeleton(p) for p in stored_points])
        out["optimizers"][family] = {
            "factory": entry["factory"],
            "points": [points.get(name, p) for name, p in zip(names, stored_points)],
        }
    return out


def _merged_computation(stored: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprints of the stored and the requested sweep, without the programs of another version."""
    entries = dict(stored["entries"])
    for name, entry in new["entries"].items():
        before = entries.get(name, {})
        same_versions = before.get("with") == entry["with"] and stored["engine"] == new["engine"]
        programs_before = before.get("programs", {}) if same_versions else {}
        # Only an optimizer may be requested with some of its points; any other entry has all of its programs.
        partial = programs_before if name.startswith("optimizers.") else {}
        joined = {point: {**partial.get(point, {}), **digests} for point, digests in entry["programs"].items()}
        entries[name] = {**entry, "programs": {**programs_before, **joined}}
    return {"engine": new["engine"], "entries": entries}


def accepted(
    reason: str, changed: Sequence[str], versions: Mapping[str, Any], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest's note of accepted changes, and of the grid whose stored runs were computed by the code before."""
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before = {name: stored["definition"][name] for name in ("axes", "seeds")}
    points = {name: entry["points"] for name, entry in stored["definition"]["optimizers"].items()}
    return {
        "reason": reason, "differences": list(changed), "date": date, "versions": dict(versions),
        "before": {**before, "optimizers": points, "runs": stored["runs"]},
    }  # fmt: skip


def checkpoint_base(stored: Mapping[str, Any]) -> str:
    """Hash that names the checkpoints of a stored sweep: an extension keeps it, a change of code replaces it."""
    if "base_hash" in stored:
        return str(stored["base_hash"])
    return content_hash({k: v for k, v in stored["definition"].items() if k not in ("axes", "optimizers", "seeds")})
