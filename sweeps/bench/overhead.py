"""What the block runner costs beside the bare jitted scan, what memory it needs, and what a sign trajectory takes.

Three parts, each with the command's own sizes (paper-like, supports="disjoint" for feature space):

    runner        time of run_sweep(out=...) from its first call to its last byte, over that of the bare program: the
                  same training of the same units by js's loop in one jitted lax.map over lanes, nothing fetched,
                  nothing written. dense: every observable every 10 steps, a checkpoint a minute; feature_space: the
                  scalars every 50 steps. Compilation is outside both clocks; bare and runner take turns. Processor
                  time counts what all threads do; wall time also their waits, and is only worth something where the
                  host gives both threads a core of their own at all times.
    memory        peak resident memory of a process that runs 500 and 10,000 runs of feature_space into a directory
    signs         SignGD with and without trajectory="signs": processor time of run_sweep (in turns), bytes a step on
                  disk over the raw float32 bytes of all parameters, and the speed of decoding every step

Command: python sweeps/bench/overhead.py --out results/overhead [--tiny]
Cost: 15 minutes on 2 CPU cores, about a quarter of it compilation.
Expected: overhead at most 10 %, memory at most 1.2, bytes at most 0.1 %, slowdown at most 60 %, decoding faster than
training. Engine hybrid, which trains features: slowdown at most 100 %, decoding slower than training.
Writes: overhead.csv, one row a figure.
"""

import argparse
import csv
import dataclasses
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
from latency import Clock

import jaxsign as js
from jaxsign.cli.console import configure
from jaxsign.store import locks, trajectory
from jaxsign.sweep.execute import Cursor, next_call
from jaxsign.sweep.plan import Limits, Plan
from jaxsign.sweep.programs import Compiler
from jaxsign.sweep.progress import Progress, Stop
from jaxsign.sweep.starts import Starts
from jaxsign.sweep.worker import Session
from jaxsign.validation.values import local_path

REPEATS = 2


def sweep(engine, seeds, steps=1500, **changes):
    problem, hyper = js.presets.paper_like()
    if engine == "feature_space":
        problem = dataclasses.replace(problem, supports="disjoint")
    optimizers = {"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-4])}
    base = {"system": js.two_layer, "problem": problem, "hyper": hyper, "engine": engine, "steps": steps}
    return js.Sweep(**(base | {"optimizers": optimizers, "axes": {"seed": seeds}, "test_every": steps} | changes))


def timed(made, out):
    """The clock of all runs into a fresh directory, with all programs compiled before."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with locks.shard_lock(out, (0, 1)) as held:
        session, clock = Session(made, out, (0, 1), held, Limits()), Clock()
        session.compiler.wait()
        with Progress(made.size, made.steps, quiet=True) as progress, clock:
            session.run(session.missing(), Stop(), progress)
        session.close(clock.wall)
    return clock


class Bare:
    """The same units in calls as long as their stops allow: what the device has to do and nothing else."""

    def __init__(self, made):
        self.made, self.compiler = made, Compiler()
        plan = Plan.new(made, Limits(), compiler=self.compiler)
        (self.program,), self.records = plan.programs, plan.layout.records
        self.todo = plan.units(plan.layout.all_runs())
        self.compiled = plan.compiled(self.todo, self.compiler)[0]
        self.compiled.wait()

    def timed(self):
        """The clock of all units."""
        with Clock() as clock:
            self.run()
        return clock

    def run(self):
        """Trains all units."""
        _, init, advance = self.compiled.wait()
        for unit in self.todo:
            given = [self.program.arguments(unit.members[part]) for part in self.program.parts(len(unit.members))]
            starts = Starts().parts(self.compiled, unit.members)
            states = [init(g.seeds, start, g.hyper, g.floats) for g, start in zip(given, starts)]
            cursor = Cursor()
            while not cursor.done(self.made.schedule):
                steps = self.made.schedule.steps
                call = next_call(self.made.schedule, cursor, self.program.slots, steps, self.records)
                calls = [
                    advance(g.seeds, start, g.hyper, g.floats, state, call.stops)
                    for g, start, state in zip(given, starts, states)
                ]
                states, rows, _ = zip(*calls)
                cursor = call.after
            jax.block_until_ready((states, rows))


def runner(out, tiny):
    """Rows (figure, value, unit, note) of the runner's overhead."""
    everything_observed = list(js.train(
        jax.random.key(0), js.two_layer(js.presets.paper_like()[0]), js.presets.paper_like()[1], js.sign_gd(1e-4),
        steps=1, test_every=1,
    ).trace)  # fmt: skip
    full = [name for name in everything_observed if not name.startswith("test")]
    cases = {
        "dense, full trace every 10 steps": sweep("dense", 8 if tiny else 384, 100 if tiny else 1500,
                                                  observables=full, record=10),
        "feature_space, scalars every 50 steps": sweep("feature_space", 64 if tiny else 16384,
                                                       100 if tiny else 1500, record=50),
    }  # fmt: skip
    rows = []
    for name, made in cases.items():
        bare, repeats = Bare(made), 1 if tiny else REPEATS
        pairs = [(bare.timed(), timed(made, out / "runner")) for _ in range(repeats)]
        for clock, of in (("processor", "cpu"), ("wall", "wall")):
            times = [(getattr(alone, of), getattr(run, of)) for alone, run in pairs]
            ratio = statistics.median(run / alone for alone, run in times)
            note = f"{made.size} runs, bare and runner " + ", ".join(f"{a:.1f} and {r:.1f} s" for a, r in times)
            rows.append((f"runner overhead, {clock} time: {name}", 100 * (ratio - 1), "%", note))
    shutil.rmtree(out / "runner", ignore_errors=True)
    return rows


CHILD = """
import re, sys
sys.path.insert(0, sys.argv[1])
import overhead
overhead.configure()
overhead.js.run_sweep(overhead.sweep("feature_space", int(sys.argv[2]), int(sys.argv[3]), record=50), sys.argv[4])
# Not getrusage: a child's peak there begins with that of the process that started it.
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]))
"""


def memory(out, tiny):
    """Rows of the peak memory of two numbers of runs, each in a process of its own."""
    counts = (64, 256) if tiny else (500, 10_000)
    peaks = []
    for count in counts:
        where = out / f"memory-{count}"
        shutil.rmtree(where, ignore_errors=True)
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", CHILD, here, str(count), "100" if tiny else "600", str(where)]
        peaks.append(int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        shutil.rmtree(where)
    note = ", ".join(f"{count} runs {peak / 1e6:.0f} MB" for count, peak in zip(counts, peaks))
    return [("peak memory of many runs over few", peaks[1] / peaks[0], "times", note)]


def replayed(run, steps):
    """What is trained at the end, decoded from the start without the help of keyframes."""
    *_, (_, trained) = run.trained(range(0, steps + 1, 100))
    return trained


def signs(out, tiny):
    """Rows of the bytes, the cost and the decoding of sign trajectories."""
    rows = []
    for engine in ("hybrid", "support", "dense"):
        seeds, steps = (4, 200) if tiny else (64, 1500)
        plain = sweep(engine, seeds, steps)
        kept = dataclasses.replace(plain, trajectory="signs")
        pairs = [
            (timed(plain, out / "plain"), timed(kept, out / "kept")) for _ in range(1 if tiny else REPEATS)
        ]  # fmt: skip
        seconds = statistics.median(a.wall for a, _ in pairs)
        slower = statistics.median(b.cpu / a.cpu for a, b in pairs)
        problem = plain.problem
        raw = 4 * problem.d * (2 * problem.rows + 2 * problem.m_v)
        size = trajectory.size(out / "kept") / plain.size / steps
        rate = plain.size * steps / seconds
        rows.append(
            (f"{engine}: bytes of every step over raw float32", 100 * size / raw, "%", f"{size:.0f} of {raw} B")
        )
        rows.append((f"{engine}: training slower by", 100 * (slower - 1), "%", f"{rate:.0f} seed-steps/s without"))
        opened = js.open_trajectory(out / "kept")
        for run in (opened[0], opened[1]):
            jax.block_until_ready((replayed(run, steps), [p for _, p in run.iter(stop=20)]))  # compiled
        for name, every in (("replaying to the end", steps), ("every step's parameters", 1)):
            runs = list(opened)[2:4] if every == 1 else list(opened)[2:]
            for run in runs:
                run.start  # noqa: B018 - drawn outside the clock
            begun = time.perf_counter()
            for run in runs:
                # From the start, past every keyframe, as training goes.
                for _step, params in run.iter(every=every) if every == 1 else [(steps, replayed(run, steps))]:
                    jax.block_until_ready(params)
            decoded = len(runs) * steps / (time.perf_counter() - begun)
            note = f"{decoded:.0f} steps/s in one process"
            rows.append((f"{engine}: {name} over training", decoded / rate, "times", note))
    for name in ("plain", "kept"):
        shutil.rmtree(out / name, ignore_errors=True)
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--tiny", action="store_true", help="a smoke test, no figures")
    parser.add_argument("--part", choices=["runner", "memory", "signs"], action="append", help="only this one")
    args = parser.parse_args(argv)
    configure()
    out = local_path("--out", args.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, part in {"signs": signs, "runner": runner, "memory": memory}.items():
        if args.part is None or name in args.part:
            found = part(out, args.tiny)
            rows += found
            for figure, value, unit, note in found:
                print(f"{figure:62s} {value:8.3g} {unit:6s} {note}", flush=True)
    with (out / "overhead.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("figure", "value", "unit", "note"), *rows])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
