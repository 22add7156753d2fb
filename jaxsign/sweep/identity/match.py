"""Whether a stored sweep is the one that is asked for: values, code by what it computes, accepted changes."""

import collections
import functools
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxsign.store.environment import cpu_model, package_versions
from jaxsign.sweep.identity.definition import (
    code,
    content_hash,
    definition,
    derived_by,
    differences,
    extension,
    neutral,
    numbered,
    opaque,
    short_name,
    skeleton,
)
from jaxsign.sweep.identity.sources import Reached
from jaxsign.sweep.identity.tracing import programs
from jaxsign.sweep.sweep import Sweep

#: Parts of jaxsign that compute no number of a run.
READERS = {"claims", "report", "theory", "plot", "cli"}
#: Differences that a message lists.
LINES = 6


class Match(NamedTuple):
    """How a sweep that is asked for relates to a stored one.

    Args:
      order: for every dimension of (axes, optimizer, seed), the sweep's index at every stored place, or -1.
      part: whether it is a part of what is stored.
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

    Values are compared as they are. Code is compared by the programs that it traces to; where another version of JAX,
    Optax or jaxsign made the stored ones and they differ, by the sources of the user's own functions.

    Args:
      path: results directory, for messages.
      stored: its manifest.
      sweep: what is asked for.
      accept: reason for which changes of code are accepted, or None.
      computation: the sweep's `fingerprints`, if they are known.

    Raises:
      ValueError: for another definition, with the differences.
    """
    described = definition(sweep)
    fresh = "computation" not in stored  # stored by version 0.1: nothing but names, numbers and hashes of texts
    compared = definition(sweep, texts=True) if fresh else described
    order = extension(path, stored, compared)
    computation = computation or fingerprints(sweep, described)
    lines: list[str] = []
    notes: list[str] = []
    versions = package_versions()
    same_packages = all(stored["versions"].get(name) == versions[name] for name in ("jax", "jaxlib", "optax"))
    if fresh:
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
                continue  # another optimizer, or one that is not asked for
            found, note = _entry_differences(
                entry, old.get(entry), new.get(entry), stored["computation"]["entries"].get(entry, {}),
                computation["entries"].get(entry, {}), stored["computation"]["engine"] == computation["engine"],
                same_packages,
            )  # fmt: skip
            lines += found
            notes += [note] if note and note not in notes else []
    if lines and accept is None:
        more = [f"and {len(lines) - LINES} more"] if len(lines) > LINES else []
        raise ValueError(
            f"out={path!r} belongs to another definition: {'; '.join([*lines[:LINES], *more])} "
            '(accept="reason" takes a change of code and keeps it in the manifest)'
        )
    part = any(i < 0 for own in order for i in own)
    if part:
        described = _merged(stored["definition"], described if not fresh or lines else stored["definition"])
    if not fresh:
        computation = _merged_computation(stored["computation"], computation)
    return Match(order, part, lines, described, computation, notes)


def fingerprints(sweep: Sweep, described: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep computes, for its manifest: of every entry of code that is not a package's alone.

    Returns:
      {"engine": digest of jaxsign's own code, "entries": {entry: {"programs", "sources", "with"}}}.
    """
    held = code(described)
    entries = [name for name, description in held.items() if opaque(description)]
    traced = programs(sweep, [name for name in entries if name != "hyper_code"])
    out: dict[str, Any] = {}
    for name in entries:
        reached = Reached()
        for value in _reached(sweep, name):
            reached.digest(value)
        out[name] = {
            "programs": traced.get(name, {}), "sources": reached.parts, "with": _versions(reached.packages),
        }  # fmt: skip
    return {"engine": engine(), "entries": out}


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
    """Versions of the packages that some code uses, and the kind of device: with others, programs may differ."""
    names = sorted({"jax", "optax", *packages} - {"jaxsign"} - set(sys.stdlib_module_names))
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in names}
    known = {name: version for name, version in found.items() if isinstance(version, str)}
    return {**known, "platform": jax.local_devices()[0].platform}


@functools.cache
def engine() -> str:
    """Digest of jaxsign's own code, of what decides numbers; moved files do not matter."""
    folder = Path(__file__).parents[2]
    files = [f for f in folder.rglob("*.py") if f.relative_to(folder).parts[0].removesuffix(".py") not in READERS]
    digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _entry_differences(
    entry: str,
    old: Any,
    new: Any,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    same_engine: bool,
    same_packages: bool,
) -> tuple[list[str], str]:
    """(lines for what differs in one entry of code, a note if versions kept its programs from being compared)."""
    if old is None or new is None:
        return differences(old and neutral(old), new and neutral(new), entry), ""
    if entry.startswith("optimizers.") and "points" in old and "points" in new:  # those of both
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
            said = [line for line in differences(neutral(old), neutral(new), entry) if ".source:" not in line]
            return _reasons(entry, before["sources"], after["sources"]) or said or [_unexplained(entry, changed)], ""
    plain_old, plain_new = neutral(old), neutral(new)
    if plain_old == plain_new:
        note = "its programs differ with these versions; the sources of your functions are the same"
        return [], note if points else ""
    if not (same_engine and same_packages) and _numbers_agree(plain_old, plain_new):
        return [], "what packages made is named otherwise in these versions; its numbers are the same"
    lines = _reasons(entry, before.get("sources", {}), after.get("sources", {}))
    return lines or differences(plain_old, plain_new, entry), ""


def _numbers_agree(old: Any, new: Any) -> bool:
    """Whether two descriptions of a package's function differ in names and added defaults only, as versions do."""

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
    """A line for programs that changed while the code is as it was."""
    names = list(changed)
    words = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{entry}: the program of {words} has changed, by data that it reads or by a setting of JAX"


def _text_differences(old: Mapping[str, Any], new: Mapping[str, Any], same_packages: bool) -> list[str]:
    """Lines for what differs from a definition of version 0.1, which knows the text of functions."""
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
        was = out["optimizers"][family]["points"]
        names = numbered([skeleton(p) for p in was])
        out["optimizers"][family] = {
            "factory": entry["factory"],
            "points": [points.get(name, p) for name, p in zip(names, was)],
        }
    return out


def _merged_computation(stored: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprints of what is stored and of what is asked for; the programs of another version are not kept."""
    entries = dict(stored["entries"])
    for name, entry in new["entries"].items():
        was = entries.get(name, {})
        kept = was.get("programs", {}) if was.get("with") == entry["with"] and stored["engine"] == new["engine"] else {}
        # An optimizer may come with some of its points; what any other entry computes is all there.
        some = kept if name.startswith("optimizers.") else {}
        joined = {point: {**some.get(point, {}), **found} for point, found in entry["programs"].items()}
        entries[name] = {**entry, "programs": {**kept, **joined}}
    return {"engine": new["engine"], "entries": entries}


def starts(stored: Mapping[str, Any] | None, where: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's list of all that this sweep's runs were computed with, and what it promises of another run.

    Args:
      stored: the manifest so far, None for a new directory.
      where: this process's `environment`.

    Returns:
      {"starts": one entry for each different set of versions, code, device, processor and flags, in order; "resume":
      "bit-identical" where there is one, and the device promises it, otherwise "statistically equal"}.
    """
    here = _start(where, engine())
    known: list[dict[str, Any]] = []
    if stored is not None:
        # Earlier versions kept none: what is known of the first start, and of the versions of the others.
        first = _start(stored, stored.get("computation", {}).get("engine"))
        others = [_start({**session, "flags": stored["flags"]}, None) for session in stored["sessions"]]
        known = stored.get("starts") or [first, *others]
    different: list[dict[str, Any]] = []
    for start in [*known, here]:
        alike = (all(None in (a, b) or a == b for a, b in zip(start.values(), one.values())) for one in different)
        if not any(alike):
            different.append(start)
    return {"starts": different, "resume": where["resume"] if len(different) == 1 else "statistically equal"}


def _start(where: Mapping[str, Any], code: str | None) -> dict[str, Any]:
    """What decides the rounding of one start's numbers, None for what is not known."""
    versions, device = where["versions"], where.get("device", {})
    return {
        **{name: versions.get(name) for name in ("jax", "jaxlib", "optax", "jaxsign")}, "code": code,
        "device": device.get("kind"), "cpu": where.get("cpu"), "flags": " ".join(sorted(_flags(where["flags"]))),
    }  # fmt: skip


def _flags(flags: Mapping[str, Any]) -> set[str]:
    """XLA's flags that may change numbers."""
    return {flag for flag in flags.get("XLA_FLAGS", "").split() if _numeric(flag)}


def other_versions(stored: Mapping[str, Any], versions: Mapping[str, Any], flags: Mapping[str, Any]) -> list[str]:
    """Words for versions and flags that an earlier session had and this process has not."""
    sessions = [stored, *stored["sessions"]]
    out = []
    for name in ("jax", "jaxlib", "optax", "jaxsign"):
        earlier = {s["versions"].get(name): None for s in sessions if s["versions"].get(name) != versions.get(name)}
        out += [f"{name} {', '.join(map(str, earlier))} -> {versions.get(name)}"] if earlier else []
    known = stored.get("computation", {}).get("engine")
    commits = [str(v.get("commit"))[:9] for v in (stored["versions"], versions)]
    if known not in (None, engine()) or (known is None and "None" not in commits and commits[0] != commits[1]):
        out.append(f"jaxsign's own code ({commits[0]} -> {commits[1]})")
    before, now = _flags(stored["flags"]), _flags(flags)
    if before != now:
        out.append(f"XLA_FLAGS {' '.join(sorted(before)) or 'none'} -> {' '.join(sorted(now)) or 'none'}")
    here = {"device": jax.local_devices()[0].device_kind, "cpu": cpu_model()}
    for name, value in here.items():
        earlier = {start[name]: None for start in stored.get("starts", ()) if start.get(name) not in (None, value)}
        out += [f"{name} {', '.join(earlier)} -> {value}"] if earlier else []
    return out


def _numeric(flag: str) -> bool:
    """Whether an XLA flag may change numbers on the kind of device that is used."""
    if flag.startswith("--xla_force_host_platform_device_count"):
        return False
    return not flag.startswith("--xla_gpu") or jax.local_devices()[0].platform == "gpu"


def accepted(
    reason: str, changed: Sequence[str], versions: Mapping[str, Any], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest's note of changes that were accepted, and of the grid whose stored runs are of the code before."""
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before = {name: stored["definition"][name] for name in ("axes", "seeds")}
    points = {name: entry["points"] for name, entry in stored["definition"]["optimizers"].items()}
    return {
        "reason": reason, "differences": list(changed), "date": date, "versions": dict(versions),
        "before": {**before, "optimizers": points, "runs": stored["runs"]},
    }  # fmt: skip


def checkpoint_base(stored: Mapping[str, Any]) -> str:
    """What names the checkpoints of a stored sweep: kept when it is extended, another after a change of code."""
    if "base_hash" in stored:
        return str(stored["base_hash"])
    return content_hash({k: v for k, v in stored["definition"].items() if k not in ("axes", "optimizers", "seeds")})
