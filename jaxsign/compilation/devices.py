"""On how many devices does a sweep run? On a CPU on one per core: JAX runs the programs of one device one by one."""

import contextlib
import os
from typing import Any

import jax

from jaxsign.validation.messages import counted

#: The flag with which users set the number of CPU devices before JAX had an option for it.
FLAG = "xla_force_host_platform_device_count"


def cores() -> int:
    """CPU cores that this process may use; all cores of the machine if the system does not tell (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_on_every_core() -> None:
    """Has JAX start with a CPU device per core, at least two, unless it has started or the user has said how many.

    No bit of a run depends on how many devices there are, as long as there are `several`. The number cannot change once
    JAX has started, with its first array.
    """
    settings: Any = jax.config
    if settings.jax_num_cpu_devices > 0 or FLAG in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):
        settings.update("jax_num_cpu_devices", max(cores(), 2))


def number() -> str:
    """The text "one" or "several": for one device XLA compiles other code than for any number of them.

    It rounds differently then (jax 0.10.2: the last bit of Adam's runs in the two-layer system).
    """
    return "several" if jax.local_device_count() > 1 else "one"


def idle_cores() -> str:
    """The text "1 of 16 cores" if there are fewer CPU devices than cores, else ""."""
    devices = jax.local_devices()
    idle = devices[0].platform == "cpu" and len(devices) < cores()
    return f"{len(devices)} of {counted(cores(), 'core')}" if idle else ""
