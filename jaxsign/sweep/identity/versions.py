"""Which code, versions, devices and flags the runs of a sweep were computed with."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxsign.compilation import number
from jaxsign.store.environment import cpu_model

#: Parts of jaxsign that compute no number of a run.
READERS = {"claims", "report", "theory", "plot", "cli"}


@functools.cache
def engine_digest() -> str:
    """Digest of those files of jaxsign that affect the numbers of a run, wherever they are in the package."""
    folder = Path(__file__).parents[2]
    files = [f for f in folder.rglob("*.py") if f.relative_to(folder).parts[0].removesuffix(".py") not in READERS]
    digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def starts(stored: Mapping[str, Any] | None, where: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's list of everything that the runs of a sweep were computed with, and what it promises for a rerun.

    Args:
      stored: the manifest so far, None for a new directory.
      where: this process's `environment`.

    Returns:
      {"starts": one entry for each different set of versions, code, device, number of devices, processor and flags, in
      order; "resume": "bit-identical" where there is one, and the device promises it, otherwise "statistically equal"}.
    """
    here = _start(where, engine_digest())
    known: list[dict[str, Any]] = []
    if stored is not None:
        # Manifests of earlier versions lack the list: the first start and the versions of the others are known.
        first = _start(stored, stored.get("computation", {}).get("engine"))
        others = [_start({**session, "flags": stored["flags"]}, None) for session in stored["sessions"]]
        known = stored.get("starts") or [first, *others]
    different: list[dict[str, Any]] = []
    for start in [*known, here]:
        alike = (all(None in (a := start.get(k), b := one.get(k)) or a == b for k in here) for one in different)
        if not any(alike):
            different.append(start)
    return {"starts": different, "resume": where["resume"] if len(different) == 1 else "statistically equal"}


def other_versions(stored: Mapping[str, Any], versions: Mapping[str, Any], flags: Mapping[str, Any]) -> list[str]:
    """Words for versions and flags of earlier sessions that differ from those of this process."""
    sessions = [stored, *stored["sessions"]]
    out = []
    for name in ("jax", "jaxlib", "optax", "jaxsign"):
        earlier = {s["versions"].get(name): None for s in sessions if s["versions"].get(name) != versions.get(name)}
        out += [f"{name} {', '.join(map(str, earlier))} -> {versions.get(name)}"] if earlier else []
    known = stored.get("computation", {}).get("engine")
    commits = [str(v.get("commit"))[:9] for v in (stored["versions"], versions)]
    if known not in (None, engine_digest()) or (known is None and "None" not in commits and commits[0] != commits[1]):
        out.append(f"jaxsign's own code ({commits[0]} -> {commits[1]})")
    before, now = _flags(stored["flags"]), _flags(flags)
    if before != now:
        out.append(f"XLA_FLAGS {' '.join(sorted(before)) or 'none'} -> {' '.join(sorted(now)) or 'none'}")
    here = {"device": jax.local_devices()[0].device_kind, "devices": number(), "cpu": cpu_model()}
    for name, value in here.items():
        earlier = {start[name]: None for start in stored.get("starts", ()) if start.get(name) not in (None, value)}
        out += [f"{name} {', '.join(earlier)} -> {value}"] if earlier else []
    return out


def _start(where: Mapping[str, Any], code: str | None) -> dict[str, Any]:
    """Everything that affects rounding in one start; unknown entries are None."""
    versions, device = where["versions"], where.get("device", {})
    return {
        **{name: versions.get(name) for name in ("jax", "jaxlib", "optax", "jaxsign")}, "code": code,
        "device": device.get("kind"), "devices": where.get("devices"), "cpu": where.get("cpu"),
        "flags": " ".join(sorted(_flags(where["flags"]))),
    }  # fmt: skip


def _flags(flags: Mapping[str, Any]) -> set[str]:
    """Flags of XLA that may change numbers."""
    return {flag for flag in flags.get("XLA_FLAGS", "").split() if _numeric(flag)}


def _numeric(flag: str) -> bool:
    """Whether an XLA flag may change numbers on the platform in use."""
    if flag.startswith("--xla_force_host_platform_device_count"):
        return False
    return not flag.startswith("--xla_gpu") or jax.local_devices()[0].platform == "gpu"
