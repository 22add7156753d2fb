"""Where and how was a sweep run: command, versions, device, dtype, precision and flags?"""

import functools
import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.compilation import compiler_options, number
from jaxsign.store import times


def physical_memory() -> int | None:
    """Bytes of the machine's memory; None if the system does not tell."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return size if size > 0 else None


def environment() -> dict[str, Any]:
    """The manifest's entries about this process."""
    device = jax.local_devices()[0]
    flags = os.environ.get("XLA_FLAGS", "")
    exact = device.platform == "cpu" or "xla_gpu_deterministic_ops=true" in flags
    return {
        "versions": {"python": platform.python_version(), **package_versions(), "commit": _commit()},
        "device": {"platform": device.platform, "kind": device.device_kind},
        "devices": number(),
        "cpu": cpu_model(),
        "host": socket.gethostname(),
        "command": _command(),
        "dtype": np.dtype(jnp.zeros(()).dtype).name,
        "matmul_precision": "highest",
        "flags": {
            "XLA_FLAGS": flags,
            "x64": jnp.zeros(()).dtype == jnp.float64,
            "threefry_partitionable": partitionable(),
        },
        "compiler_options": compiler_options(device.platform),
        "resume": "bit-identical" if exact else "statistically equal",
        "finished": times.now(),
    }


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that the numbers depend on."""
    return {name: _version(name) for name in ("jax", "jaxlib", "optax", "orbax-checkpoint", "jaxsign")}


def partitionable() -> bool:
    """JAX's flag that changes the draws of keys."""
    return bool(jax.config.values.get("jax_threefry_partitionable", True))


@functools.cache
def cpu_model() -> str:
    """The processor's name; "" if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _command() -> str:
    """The command line of this process, without the interpreter's folder: "python sweeps/snr.py --out DIR"."""
    interpreter, *words = sys.orig_argv or [sys.executable]
    return shlex.join([os.path.basename(interpreter), *words])


@functools.cache
def _commit() -> str | None:
    """The git commit of this code when it was first asked for; None without git or a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


@functools.cache
def _version(package: str) -> str | None:
    """A package's version; None for jaxsign itself if it is run without being installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
