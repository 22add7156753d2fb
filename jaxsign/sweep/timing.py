"""Short measurements: what a run of a group costs on this machine, and which lane width is fastest."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsign.sweep.groups import BLOCK_RUNS, Group, run_count
from jaxsign.sweep.layout import first_index
from jaxsign.sweep.programs import Compiled, Compiler, Program, no_stops
from jaxsign.sweep.sweep import Sweep
from jaxsign.training.loop import Stops

#: Widths are measured only for sweeps that are expected to take longer than this; a measurement takes some seconds.
LONG_SECONDS = 600.0
#: Sweeps of fewer seed-steps are not even timed.
FEW_SEED_STEPS = 100_000
#: Another width than the cache's must be faster by this factor: timings scatter.
BETTER = 1.1
#: A measurement trains for about this long.
SPAN = 0.2


class Speed(NamedTuple):
    """Seconds that one run costs with all devices at work.

    Args:
      begin: drawing its data and parameters.
      step: an optimizer step.
      row: a recorded step.
      test: looking at the test set.
    """

    begin: float
    step: float
    row: float
    test: float

    def run(self, sweep: Sweep) -> float:
        """Seconds of one whole run."""
        schedule = sweep.schedule
        return (
            self.begin + schedule.steps * self.step + schedule.record.size * self.row + schedule.test.sum() * self.test
        )


def measure(compiled: Compiled) -> Speed:
    """Times the programs of a group on one call's runs."""
    program, size, sweep = compiled.program, compiled.size, compiled.program.sweep
    group = program.group
    first = (*first_index(sweep, group), group.optimizers[0])
    members = [(*first, i % len(sweep.seeds)) for i in range(size)]
    seeds, hyper, floats, degrees = program.arguments(members, size)
    begin, init, advance = (f.result() for f in (compiled.begin, compiled.init, compiled.advance))
    start = jax.block_until_ready(begin(seeds, hyper, degrees, sweep.shared))
    begun = time.perf_counter()
    start = jax.block_until_ready(begin(seeds, hyper, degrees, sweep.shared))
    drawing = time.perf_counter() - begun
    state = init(seeds, start, hyper, floats)

    def call(stops: Stops) -> float:
        nonlocal state
        before = time.perf_counter()
        state, rows, _ = advance(seeds, start, hyper, floats, state, stops)
        jax.block_until_ready((state, rows))
        return time.perf_counter() - before

    blank = no_stops(program.slots)
    call(blank)
    empty = min(call(blank) for _ in range(2))
    one, every = np.arange(program.slots) == 0, np.ones(program.slots, bool)
    row = max(call(blank._replace(record=every)) - empty, 0.0) / program.slots
    test = max(call(blank._replace(record=one, test=one)) - empty - row, 0.0)
    steps, seconds = 8, 0.0
    while seconds < SPAN and steps <= 10**6:
        full = np.full(program.slots, steps, np.int32)
        seconds = call(blank._replace(end=full, start=full * ~one)) - empty
        if seconds < SPAN:
            steps *= int(np.clip(1.2 * SPAN / max(seconds, 1e-6), 2, 64))
    return Speed(drawing / size, max(seconds, 1e-9) / steps / size, row / size, test / size)


def lane_widths(sweep: Sweep, groups: Sequence[Group], programs: Sequence[Program], slots: int) -> list[int]:
    """The lane width of every group: the cache's, or a measured one where the sweep is long.

    A quarter and four times the cache's width are tried on each group that takes a good part of a long sweep.

    Args:
      sweep: the sweep.
      groups: its groups.
      programs: their programs with the cache's widths.
      slots: stops of a call.
    """
    widths = [program.width for program in programs]
    if sweep.size * sweep.schedule.steps < FEW_SEED_STEPS:
        return widths
    mesh = programs[0].mesh
    with Compiler() as compiler:

        def speed(group: Group, width: int) -> Speed:
            program = Program(sweep, group, width, slots, mesh)
            member = (*first_index(sweep, group), group.optimizers[0], 0)
            return measure(compiler.compile(program, [member], program.quantum))

        seconds = [speed(group, width).run(sweep) * run_count(sweep, group) for group, width in zip(groups, widths)]
        if sum(seconds) < LONG_SECONDS:
            return widths
        tried: dict[Any, int] = {}
        for i, group in enumerate(groups):
            key = (group.program_key, widths[i])
            if key not in tried and seconds[i] > 0.1 * sum(seconds):
                most = max(1, min(BLOCK_RUNS, run_count(sweep, group)) // mesh.size)
                others = {w for w in (max(widths[i] // 4, 1), widths[i] * 4) if w <= most} - {widths[i]}
                found = {w: speed(group, w).run(sweep) for w in others}
                own = seconds[i] / run_count(sweep, group)
                best = min(found, key=lambda w: found[w], default=widths[i])
                tried[key] = best if found.get(best, own) * BETTER < own else widths[i]
            widths[i] = tried.get(key, widths[i])
    return widths


def estimate(sweep: Sweep, compiled: Mapping[int, Compiled], groups: Sequence[Group]) -> tuple[list[Speed], float]:
    """(speed of every group, seconds that all runs take on this machine)."""
    speeds = [measure(compiled[i]) for i in range(len(groups))]
    return speeds, sum(speed.run(sweep) * run_count(sweep, group) for speed, group in zip(speeds, groups))
