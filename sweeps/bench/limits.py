"""What bounds sweeps/bench/throughput.py: the machine's measured limits, and the arithmetic of one step of an engine.

No experiment of its own: it has no command. The arithmetic is explained in sweeps/bench/throughput.py.
"""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata, util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

import jaxsign as js
from jaxsign.compilation import compiler_options, cores
from jaxsign.systems.two_layer.model import COLUMNS
from jaxsign.systems.two_layer.overlaps import shared_slots

RUNS = PartitionSpec("run")


class Seconds(float):
    """The median of the times of one call, with the lowest and the highest of them."""

    lowest: float
    highest: float

    def __new__(cls, times: list[float]) -> "Seconds":  # a float is made before it is initialised
        """Of a list of seconds."""
        self = super().__new__(cls, statistics.median(times))
        self.lowest, self.highest = min(times), max(times)
        return self


def median_seconds(calls: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, Seconds]:
    """The median time of every call; they take turns, so that a busy spell of the machine hits all alike."""
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            started = time.perf_counter()
            call()
            times[key].append(time.perf_counter() - started)
    return {key: Seconds(each) for key, each in times.items()}


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of one run: floating-point operations, bytes moved, and bytes that stay between steps."""

    flops: float
    bytes: float
    state: float


def arithmetic(engine: str, problem: js.Problem, moments: int = 0) -> Step | None:
    """The least that a step of an engine takes, see throughput.py; None for an engine without a formula."""
    p, m = problem, problem.rows
    noise = p.n * p.patches
    patches, trained = 1 + noise, 2 * m + 2
    if engine in ("feature_space", "hybrid"):
        slots = shared_slots(p, noise)
        features = (2 * m + 1) * (patches + slots)
        flops = 6 * m * (3 * noise + 1) + 60 * noise + 4 * noise * (2 * m + 1) * slots + (3 + 6 * moments) * features
        moved = 4 * ((5 + 2 * moments) * features + 2 * noise * slots)
        return Step(flops, moved, 4 * ((2 + moments) * features + noise * slots))
    if engine not in ("dense", "support"):
        return None
    columns = p.d if engine == "dense" else min(p.d, -(-(noise * p.s + 1) // COLUMNS) * COLUMNS)
    flops = columns * (4 * patches * (2 * m + 1) + (2 + 6 * moments) * trained)
    moved = 4 * columns * (2 * patches + (5 + 2 * moments) * trained)
    return Step(flops, moved, 4 * columns * (patches + (2 + moments) * trained))


@dataclasses.dataclass(frozen=True)
class Limits:
    """float32 GFLOP/s of a large square product, and GB/s of a triad for several working sets (bytes a device)."""

    gflops: float
    gbs: dict[int, float]

    def bound(self, step: Step, width: int) -> float:
        """Steps a second at most: products at full speed, and bytes as fast as a working set of that size allows."""
        resident = [size for size in self.gbs if size >= width * step.state] or [max(self.gbs)]
        return min(1e9 * self.gflops / step.flops, 1e9 * self.gbs[min(resident)] / step.bytes)

    def best(self, other: "Limits") -> "Limits":
        """The higher of each limit: what else runs on the machine can only lower them."""
        return Limits(
            max(self.gflops, other.gflops), {size: max(gbs, other.gbs[size]) for size, gbs in self.gbs.items()}
        )


def measure_limits(mesh: Any, tiny: bool) -> Limits:
    """Measures both on all devices at once."""

    def best(function, *arrays, options=None):
        mapped = jax.shard_map(function, mesh=mesh, in_specs=RUNS, out_specs=RUNS, check_vma=False)
        program = jax.jit(mapped, compiler_options=options).lower(*arrays).compile()
        placed = jax.device_put(arrays, jax.NamedSharding(mesh, RUNS))
        jax.block_until_ready(program(*placed))
        return median_seconds({"": lambda: jax.block_until_ready(program(*placed))}, 5)[""]

    side = 256 if tiny else 2048
    square = np.random.default_rng(0).random((mesh.size, side, side), np.float32)
    seconds = best(lambda a: jnp.matmul(a, a, precision="highest"), square)
    alone = median_seconds({"": lambda: square[0] @ square[0]}, 3)[""]
    gflops = max(mesh.size * 2 * side**3 / seconds, 2 * side**3 / alone) / 1e9

    gbs = {}
    for size in (2**18, 2**20) if tiny else (2**18, 2**20, 2**22, 2**24, 2**27):
        repeats = max(8, 2**28 // size)
        x, y = np.ones((2, mesh.size, size // 8), np.float32)

        def triad(x, y, repeats=repeats):
            return jax.lax.fori_loop(0, repeats, lambda _, x: 0.5 * x + y, x)

        seconds = best(triad, x, y, options=compiler_options(mesh.devices.flat[0].platform))
        gbs[size] = 12 * mesh.size * (size // 8) * repeats / seconds / 1e9  # two reads and a write a number
    return Limits(gflops, gbs)


def machine(mesh: Any) -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    packages = ["jax", "jaxlib", "numpy", "optax", *["torch"] * (util.find_spec("torch") is not None)]
    return {
        "cpu": cpu,
        "cores": cores(),
        "devices": mesh.size,
        "platform": mesh.devices.flat[0].platform,
        "load_average_before": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
    }
