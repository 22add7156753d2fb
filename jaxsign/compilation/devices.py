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
    """Has JAX start with a CPU device per core, unless it has started or the user has said how many there are.

    The number of devices changes no bit of a run. It cannot change once JAX has started, with its first array.
    """
    settings: Any = jax.config
    if settings.jax_num_cpu_devices > 0 or FLAG in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):
        settings.update("jax_num_cpu_devices", cores())


def idle_cores() -> str:
    """The text "1 of 16 cores" if there are fewer CPU devices than cores, else ""."""
    devices = jax.local_devices()
    idle = devices[0].platform == "cpu" and len(devices) < cores()
    return f"{len(devices)} of {counted(cores(), 'core')}" if idle else ""
