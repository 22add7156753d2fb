"""Short measurements: how long a run of a group takes on this machine, and which lane width is fastest."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsign.sweep.programs import Compiled, Compiler, Program, no_stops
from jaxsign.sweep.sizes import BLOCK_RUNS
from jaxsign.sweep.starts import Starts
from jaxsign.sweep.sweep import Sweep
from jaxsign.training.loop import Stops

#: Widths are measured only for sweeps that are expected to take longer than this; a measurement takes some seconds.
LONG_SECONDS = 600.0
#: Sweeps of fewer seed-steps are not even timed.
FEW_SEED_STEPS = 100_000
#: A width replaces the one that fits the cache only if it is faster by this factor, since timings scatter.
BETTER = 1.1
#: Seconds for which a measurement trains.
SPAN = 0.2


class Speed(NamedTuple):
    """Seconds that one run takes with all devices at work.

    Args:
      begin: drawing its data and parameters.
      step: an optimizer step.
      row: a recorded step.
      test: evaluating the test set.
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
    """Times the programs of a group on the runs of one part."""
    program, group = compiled.program, compiled.program.group
    members = [(*group.first_run[:-1], i % len(group.sweep.seeds)) for i in range(max(program.part, program.drawn))]
    begin, init, advance = compiled.wait()
    drawn = program.arguments(members[: program.drawn], program.drawn)
    seeds, hyper, floats, _ = program.arguments(members[: program.part])
    [start] = Starts().parts(compiled, members[: program.part])
    begun = time.perf_counter()
    jax.block_until_ready(begin(drawn.seeds, drawn.hyper, drawn.degrees, group.sweep.shared))
    drawing = (time.perf_counter() - begun) / program.drawn
    state = init(seeds, start, hyper, floats)

    def call(stops: Stops) -> float:
        nonlocal state
        before = time.perf_counter()
        state, rows, *_ = advance(seeds, start, hyper, floats, state, stops)
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
    return Speed(drawing, *(x / program.part for x in (max(seconds, 1e-9) / steps, row, test)))


def run_seconds(compiled: Sequence[Compiled]) -> list[float]:
    """Measured seconds of one run of every group; groups that share a program are measured once."""
    seconds: dict[int, float] = {}
    for one in compiled:
        if id(one.advance) not in seconds:
            seconds[id(one.advance)] = float(measure(one).run(one.program.group.sweep))
    return [seconds[id(one.advance)] for one in compiled]


def lane_widths(programs: Sequence[Program], compiler: Compiler) -> list[int]:
    """The lane width of every group: the one that fits the cache, or a measured one if the sweep is long.

    A quarter and four times the cache's width are tried on each group that takes a good part of a long sweep.

    Args:
      programs: of every group, with the width that fits the cache.
      compiler: of the run, which finds the programs compiled when it comes to train.
    """
    widths = [program.width for program in programs]
    sweep, mesh = programs[0].group.sweep, programs[0].mesh
    if sweep.size * sweep.schedule.steps < FEW_SEED_STEPS:
        return widths
    compiler.log.expect(map(compiler.key, programs))
    for one in [compiler.compile(program) for program in programs]:  # side by side, before the first is waited for
        one.wait()
    with compiler.log.measuring("measuring lane widths"):
        known: dict[Any, float] = {}  # groups of different numbers may share a program

        def seconds_of_a_run(program: Program) -> float:
            key = compiler.key(program)
            if key not in known:
                known[key] = measure(compiler.compile(program)).run(sweep)
            return known[key]

        seconds = [seconds_of_a_run(program) * program.group.size for program in programs]
        if sum(seconds) < LONG_SECONDS:
            return widths
        fastest: dict[Any, int] = {}
        for i, program in enumerate(programs):
            group, width = program.group, program.width
            key = (group.program_key, width)
            if key not in fastest and seconds[i] > 0.1 * sum(seconds):
                most = max(1, min(BLOCK_RUNS, group.size) // mesh.size)
                others = {w for w in (max(width // 4, 1), width * 4) if w <= most} - {width}
                measured = {w: seconds_of_a_run(program.with_width(w)) for w in others}
                current = seconds[i] / group.size
                best = min(measured, key=lambda w: measured[w], default=width)
                fastest[key] = best if measured.get(best, current) * BETTER < current else width
            widths[i] = fastest.get(key, width)
    return widths
