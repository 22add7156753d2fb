"""Seed-steps per second of the engines beside PyTorch and JAX + Optax as the field writes them: same work, one run.

The work: the paper-like sizes with supports="disjoint" (feature_space needs that; the others do not care; the part
"sharing" has independent supports), full batches, 200 steps, the loss at every step, four scalars every 50 (train_loss,
sign_agreement, mean s_21, value_signal) and, where it says so, test loss and test error on 1000 fresh examples.
Compilation and drawing are outside the clock, in columns of their own. The alarm of `first_frozen_step`, which the
library alone has, is left out.

Contenders (contenders.py). "pytorch": eager, one seed at a time, X as (n, 2, d), full W_V, autograd; a process a
core with one thread each, and "pytorch, one process" with a thread a core. "textbook": the same model in JAX + Optax,
mapped over seeds. "dense", "support", "feature_space": the engines; "feature_space_law" trains as feature_space does
and differs in drawing, which is measured for three d. JAX contenders run in lanes of W mapped runs on all CPU devices,
at the better of the two widths that a trial finds best; a number of runs that does not fill the devices leaves some
idle. Beyond the first number of runs, a cell is left out if the contender's rate so far predicts more than
CELL_SECONDS a repeat. Contenders take turns; the median of REPEATS counts. Last losses must agree to TOLERANCE.

Optimizers: SignGD with and without test metrics, 1 to 4096 runs; Adam, GD, and GD clipped by the global norm (which
needs the full tree: textbook and dense only) at fewer numbers of runs, SignGD's best lane width and one that suits few
runs, without test metrics: they differ in the update alone.

The bound. Per run and step, P = 1 + n patches, T = 2 m_k + 2 trained rows, C = d columns (dense) or n s + 1 rounded up
to 64 (support), M moments of the optimizer (SignGD, GD 0, Adam 2), 4 bytes a number:

    dense, support   flops  4 P (2 m_k + 1) C      weights times patches, and its gradient
                            + (2 + 6 M) T C        update
                     bytes  4 C (2 P               patches, forward and backward
                                 + (5 + 2 M) T)    weights forward, gradient out and in, weights in and out; moments
    feature_space    F = (2 m_k + 1) P features
                     flops  6 m_k (3 n + 1)        four sums over rows, and two gradients of each
                            + 60 n                 softmax and loss, an exponential counted as 10
                            + (3 + 6 M) F          update
                     bytes  4 (5 + 2 M) F          as above, without patches
    hybrid           F = (2 m_k + 1) (P + S), S = 176 slots for shared coordinates
                     flops  as feature_space, and 4 n (2 m_k + 1) S
                     bytes  as feature_space, and 8 n S

    bound = min(GFLOP/s / flops, GB/s / bytes), from limits measured before and after, the higher ones

GFLOP/s is a large square float32 product on all cores, GB/s a triad on all cores whose working set is the smallest
measured one that holds a lane: steps of a lane follow each other, so what fits in cache is read from memory once a
lane. At these sizes products bound dense and support; feature_space has sums of 20 numbers and 41 short rows a run
instead, for which products' speed is a bound far above what vector loops of that length reach.

What was tried on feature_space's step (SignGD, 64 runs a lane; microseconds a run-step of a stand-alone step on one
core of an AMD EPYC): softplus and log-sigmoid 1.9; exponentials of differences of exponents in their place 1.2 to 1.5;
sums over rows unrolled 5.0, by halves 4.4 (the terms are recomputed in every fusion that reads them). Without any
reduction 1.1, without exponentials 1.3, without both and sign .7: what is left is the passes over 20 x 20 numbers of 25
fusions. Lanes of 16, 64, 128, 256 runs: 1.19, 1.12, 1.01, 1.17 for the whole engine on two cores. Padding n = 20 to 32
costs its share: a program is padded only where several sizes share it. The runs as the last axis: 3.3 as XLA fuses it,
.75 with the same bits where every coefficient is kept from being fused, and out of reach of `jax.vmap`:
sweeps/bench/step.py measures it and has the profile of every pass.

Test metrics (1000 examples; 64 runs a lane, microseconds a run and evaluation): all runs of a lane together 128, one
run after the other 92, since its 400 kB stay in the cache (`one_by_one` in jaxsign/training/loop.py); with the sums
over rows as a scan besides 75, which devices other than a CPU would pay for. Two products take 35 of them. A level
costs two such evaluations a run. Drawing the supports of 1000 test patches with the patches along the last axis: 1.6
instead of 2.4 milliseconds.

Sharing: "support" and "hybrid" with independent supports, two lanes a device at the lane widths of `run_sweep`.

Scans: seed-steps per second of the engines with SignGD over d, n, s, m_k, at the lane widths of `run_sweep`, and over
devices (one device in a process of its own, where XLA may still use all cores inside an operation).

Command: python sweeps/bench/throughput.py --out results/throughput    (PyTorch: pip install -e '.[bench]')
Cost: 11 minutes on 2 cores of an AMD EPYC, about half of it compilation.
Writes: throughput.csv, one row a cell, and machine.json.
"""

import argparse
import csv
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contenders
import jax
import jax.numpy as jnp
import numpy as np
from contenders import ENGINES, OPTIMIZERS, SHARING, TEXTBOOK, Draws, Engine, Lane, Torch, Work, devices_mesh
from limits import Seconds, arithmetic, machine, measure_limits, median_seconds

import jaxsign as js
from jaxsign.cli.console import configure
from jaxsign.sweep.sizes import BLOCK_RUNS, lane_width
from jaxsign.validation.values import local_path, positive_int

RUNS = (1, 4, 16, 64, 256, 1024, 4096)
#: For all optimizers but SignGD, which differ in the update alone.
FEWER_RUNS = (8, 128, 1024)
CELL_SECONDS = 2.5
REPEATS = 3
#: Runs whose last losses are compared, and by how much they may differ.
COMPARED, TOLERANCE = 4, 1e-4
SCANS = {"d": (1000, 2000, 4000), "n": (10, 20, 40), "s": (20, 40, 80), "m_k": (10, 20, 40)}
COLUMNS = [
    "part", "contender", "optimizer", "runs", "test_eval", "devices", "n", "d", "s", "m_k", "m_v", "steps",
    "seed_steps_per_s", "slowest_per_s", "fastest_per_s", "fraction_of_bound", "lane_width", "compile_s",
    "draw_s", "repeats",
]  # fmt: skip


@dataclasses.dataclass
class Bench:
    """What all parts share."""

    work: Work
    mesh: object
    draws: Draws
    tiny: bool
    rows: list[dict] = dataclasses.field(default_factory=list)
    counted: list[tuple] = dataclasses.field(default_factory=list)  # (row, step, lane width) where there is a bound

    @property
    def repeats(self) -> int:
        """How often each call is timed."""
        return 1 if self.tiny else REPEATS

    def add(self, part, contender, optimizer, runs, seconds, work, lane=None, draw_s=None, repeats=None):
        """One row: a number of runs, and the seconds that they took."""
        done = runs * work.steps
        rate = done / seconds
        problem = {name: getattr(work.problem, name) for name in ("n", "d", "s", "m_k", "m_v")}
        self.rows.append({
            "part": part, "contender": contender, "optimizer": optimizer, "runs": runs, "test_eval": int(work.test),
            "devices": self.mesh.size, **problem, "steps": work.steps, "seed_steps_per_s": round(rate, 1),
            "slowest_per_s": round(done / seconds.highest, 1), "fastest_per_s": round(done / seconds.lowest, 1),
            "lane_width": lane.width if lane else "", "compile_s": round(lane.compile_seconds, 2) if lane else "",
            "draw_s": "" if draw_s is None else round(draw_s, 3), "repeats": repeats or self.repeats,
        })  # fmt: skip
        step = arithmetic(contender, work.problem, OPTIMIZERS[optimizer].moments)
        if step and lane and not work.test and OPTIMIZERS[optimizer].coordinatewise:
            self.counted.append((self.rows[-1], step, lane.width))
        return rate


class Mapped:
    """A JAX contender with one optimizer: compiled at each of its widths and timed there on one full block."""

    def __init__(self, bench, work, name, optimizer, widths):
        self.name, self.work, self.draws = name, work, bench.draws
        self.engine = Engine(work, name, optimizer) if name in ENGINES else None
        run = self.engine.run if self.engine else contenders.textbook(work, optimizer)
        example = self.runs(1)
        self.lanes = [Lane(run, example, width, bench.mesh, self.engine is not None) for width in widths]
        calls = {lane.width: lane.load(self.runs(lane.block)) for lane in self.lanes}
        for call in calls.values():
            call()
        seconds = median_seconds(calls, bench.repeats)
        self.rates = {lane.width: lane.block * work.steps / seconds[lane.width] for lane in self.lanes}
        self.best = max(self.rates, key=self.rates.get)

    def runs(self, count):
        """The first `count` runs in the form that this contender takes."""
        if self.engine:
            start = self.draws.first(count, self.engine.task, self.engine.degree)
            return start if self.work.test else start._replace(test=None)
        each = contenders.written_out(self.draws, count, self.work)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    def fitting(self, count):
        """The two fastest widths that leave no device idle, fastest first: one block each is a rough measurement."""
        fitting = [lane for lane in self.lanes if lane.block <= count] or self.lanes[:1]
        return sorted(fitting, key=lambda lane: -self.rates[lane.width])[:2]

    def load(self, count):
        """(lane, the batch of `count` runs in it) of each width worth timing."""
        runs = self.runs(count)
        return [(lane, lane.load(runs)) for lane in self.fitting(count)]

    def predicted(self, count):
        """Seconds of `count` runs, filled up to whole blocks, from the lane's own rate."""
        lane = self.fitting(count)[0]
        return -(-count // lane.block) * lane.block * self.work.steps / self.rates[lane.width]


class Eager:
    """PyTorch with one optimizer, in some number of processes."""

    def __init__(self, bench, work, name, optimizer, processes):
        self.name, self.work, self.draws, self.processes = name, work, bench.draws, processes
        self.order = (optimizer, OPTIMIZERS[optimizer].rate, work.steps, work.every)
        self.rate = np.inf  # at the last number of runs

    def load(self, count):
        """(no lane, the batch of `count` runs)."""
        runs = contenders.written_out(self.draws, count, self.work)
        return [(None, self.processes.load(runs, *self.order))]

    def predicted(self, count):
        """Seconds of `count` runs, one after the other at the rate so far."""
        return count * self.work.steps / self.rate


def agreement(traces):
    """The largest difference of last losses from the first contender's, over the runs that all have.

    Raises:
      RuntimeError: if it is above TOLERANCE.
    """
    first = next(iter(traces))
    common = min(trace["train_loss"].shape[0] for trace in traces.values())
    last = {name: trace["train_loss"][:common, -1] for name, trace in traces.items()}
    differences = {name: float(np.max(np.abs(losses - last[first]))) for name, losses in last.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise RuntimeError(f"last losses of {name} and {first} differ by {difference:.1e} > {TOLERANCE:g}")
    return max(differences.values())


def table(bench, processes):
    """All contenders, optimizer by optimizer, over the number of runs."""
    best = {}
    for name, optimizer in OPTIMIZERS.items():
        leads = name == "SignGD"
        if bench.tiny and not leads:
            continue  # compiling is what takes long
        for test in (False, True) if leads and not bench.tiny else (False,):
            work = dataclasses.replace(bench.work, test=test)
            rivals = []
            if optimizer.coordinatewise:
                rivals += [Eager(bench, work, label, name, each) for label, each in processes.items()]
            for rival in ("textbook", *ENGINES) if optimizer.coordinatewise else ("textbook", "dense"):
                widths = ENGINES.get(rival, TEXTBOOK)
                if not leads:
                    few = [width for width in widths if width * bench.mesh.size <= FEWER_RUNS[0]] or widths[:1]
                    widths = sorted({max(few), best[rival]})
                rivals.append(Mapped(bench, work, rival, optimizer, widths[: 1 if bench.tiny else None]))
                best.setdefault(rival, rivals[-1].best)
            cells(bench, work, name, (RUNS if leads else FEWER_RUNS)[: 2 if bench.tiny else None], rivals)


def cells(bench, work, optimizer, ladder, rivals):
    """One optimizer's rows: each rival at each number of runs that its rate so far allows."""
    skipped, traces = {}, {}
    print(f"\n{optimizer}, {'with' if work.test else 'without'} test metrics: seed-steps/s (lane width)")
    print(f"{'runs':>6s}" + "".join(f"{rival.name:>21s}" for rival in rivals))
    for runs in ladder:
        calls, slow = {}, {}
        for rival in rivals:
            if rival.name in skipped or (runs != ladder[0] and rival.predicted(runs) > CELL_SECONDS):
                skipped.setdefault(rival.name, runs)
                continue
            loaded = rival.load(runs)
            started = time.perf_counter()
            trace = loaded[0][1]()
            if rival.name not in traces or runs <= COMPARED:
                traces[rival.name] = trace
            elapsed = time.perf_counter() - started
            if elapsed > 2 * CELL_SECONDS:  # the first number of runs, which all do: this call has to do
                slow[rival.name, loaded[0][0]] = Seconds([elapsed])
            else:
                calls |= {(rival.name, lane): call for lane, call in loaded}
        if not calls and not slow:
            break
        seconds = median_seconds(calls, bench.repeats) | slow
        text = f"{runs:6d}"
        for rival in rivals:
            own = {lane: each for (name, lane), each in seconds.items() if name == rival.name}
            if own:
                lane, draw_s = min(own, key=own.get), rival.draws.seconds_per_run * runs
                repeats = 1 if (rival.name, lane) in slow else bench.repeats
                rate = bench.add("table", rival.name, optimizer, runs, own[lane], work, lane, draw_s, repeats)
                if isinstance(rival, Eager):
                    rival.rate = rate
                text += f"{f'{rate:.0f}' + (f' ({lane.width})' if lane else ''):>21s}"
            else:
                text += f"{'-':>21s}"
        print(text, flush=True)
    print(f"last losses differ by at most {agreement(traces):.1e}")
    if skipped:
        cut = ", ".join(f"{name} from {runs} runs" for name, runs in skipped.items())
        print(f"left out, since a repeat would take more than {CELL_SECONDS:g} s: {cut}")


def point(bench, part, work, draws, engines=ENGINES):
    """The engines at one problem, SignGD, two lanes a device at the lane widths of `run_sweep`."""
    calls, lanes = {}, {}
    for name in engines:
        engine = Engine(work, name, OPTIMIZERS["SignGD"])
        step = arithmetic(name, work.problem)
        width = (
            lane_width(int(step.state), BLOCK_RUNS, bench.mesh.devices.flat[0].platform) if step else ENGINES[name][-1]
        )
        start = draws.first(2 * width * bench.mesh.size, engine.task, engine.degree)
        start = start if work.test else start._replace(test=None)
        lanes[name] = Lane(engine.run, start, width, bench.mesh, library=True)
        calls[name] = lanes[name].load(start)
        calls[name]()
    seconds = median_seconds(calls, bench.repeats)
    p, shown = work.problem, []
    for name, lane in lanes.items():
        rate = bench.add(part, name, "SignGD", 2 * lane.block, seconds[name], work, lane)
        shown.append(f"{name} {rate:.0f} ({lane.width})")
    devices = f"{bench.mesh.size} device{'s' * (bench.mesh.size > 1)}"
    print(f"{part:>6s}: n={p.n} d={p.d} s={p.s} m_k={p.m_k}, {devices}: {', '.join(shown)}", flush=True)
    return calls


def sharing(bench):
    """The engines that independent supports need, paper-like sizes, without and with test metrics."""
    print("\nSignGD, patches that share coordinates: seed-steps/s (lane width)")
    problem = dataclasses.replace(bench.work.problem, supports="independent")
    for test in (False,) if bench.tiny else (False, True):
        work = dataclasses.replace(bench.work, problem=problem, test=test)
        calls = point(bench, "sharing", work, Draws(work, bench.mesh, test, SHARING), SHARING)
        slow, fast = (row["seed_steps_per_s"] for row in bench.rows[-len(SHARING) :])
        difference = agreement({name: call() for name, call in calls.items()})
        metrics = "with" if test else "without"
        print(f"  {metrics} test metrics {fast / slow:.2f} times; last losses differ by at most {difference:.1e}")


def scans(bench):
    """The engines over d, n, s, m_k, one at a time from the base point, which is measured once for all."""
    print("\nSignGD, cost against each size: seed-steps/s (lane width)")
    point(bench, "base", bench.work, bench.draws)
    for axis, values in SCANS.items():
        for value in values:
            if value != getattr(bench.work.problem, axis):
                problem = dataclasses.replace(bench.work.problem, **{axis: value})
                work = dataclasses.replace(bench.work, problem=problem)
                point(bench, axis, work, Draws(work, bench.mesh, test=False))


def law(bench):
    """What drawing and training a run in distribution costs, whatever d is."""
    print("\nfeature_space_law, SignGD with test metrics: milliseconds a run, drawn and trained")
    for d in (2000,) if bench.tiny else (2000, 100_000, 10_000_000):
        problem = dataclasses.replace(bench.work.problem, d=d)
        work = dataclasses.replace(bench.work, problem=problem, test=True)
        engine = Engine(work, "feature_space_law", OPTIMIZERS["SignGD"])
        width = 1 if bench.tiny else 64
        lane, draw, started = contenders.drawn_in_lanes(engine, work, width, bench.mesh)
        call = lane.load(draw())
        seconds = median_seconds({"draw": draw, "train": call}, bench.repeats)
        bench.add("law", "feature_space_law", "SignGD", lane.block, seconds["train"], work, lane, seconds["draw"])
        each = {name: 1e3 * second / lane.block for name, second in seconds.items()}
        print(f"  d={d}: {each['draw']:.2f} + {each['train']:.2f} ms; compiled in {started:.1f} s", flush=True)


def one_device(args):
    """The rows of the base point with one CPU device, which JAX can only set when a process starts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--only", "base", "--devices", "1", "--out", folder]
        command += ["--steps", str(args.steps)] if args.steps else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the process with one device failed: {done.stderr.strip().splitlines()[-1:]}")
        print("\nin a process with one device:", *(at for at in done.stdout.splitlines() if at.startswith("  base:")))
        with open(Path(folder) / "throughput.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


class Parser(argparse.ArgumentParser):
    """Errors are one line and exit status 2."""

    def error(self, message):
        """One line, without the usage."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def count(text):
    try:
        return positive_int("value", int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an int >= 1, got {text!r}") from None


def base_work(args):
    problem, hyper = js.presets.paper_like()
    problem = dataclasses.replace(problem, supports="disjoint")
    if args.tiny:
        problem = dataclasses.replace(problem, n=4, d=60, s=5, m_k=3, m_v=3, n_test=5)
    every = 5 if args.tiny else 50
    steps = args.steps or 4 * every
    if steps % every:
        raise ValueError(f"--steps: must be a multiple of {every}, got {steps}")
    return Work(problem, jax.tree.map(jnp.float32, hyper), steps, every)


def report(bench, limits):
    """Prints the limits and, for each engine, what a step takes, what bounds it, and how near it comes."""
    print(f"\nlarge float32 product: {limits.gflops:.0f} GFLOP/s on {bench.mesh.size} devices")
    print("triad: " + ", ".join(f"{gbs:.0f} GB/s at {size / 2**20:g} MiB a device" for size, gbs in limits.gbs.items()))
    for row, step, width in bench.counted:
        row["fraction_of_bound"] = round(row["seed_steps_per_s"] / limits.bound(step, width), 4)
    for name in (*ENGINES, "hybrid"):
        own = [each for each in bench.counted if each[0]["contender"] == name and each[0]["optimizer"] == "SignGD"]
        own = [each for each in own if each[0]["part"] in ("table", "base", "sharing")]
        if own:
            row, step, width = max(own, key=lambda each: each[0]["seed_steps_per_s"])
            bound = limits.bound(step, width)
            by = "products" if bound == 1e9 * limits.gflops / step.flops else "bandwidth"
            print(f"{name}: {step.flops / 1e6:.3g} Mflop, {step.bytes / 1e6:.3g} MB a run-step, "
                  f"{width * step.state / 2**20:.2g} MiB resident; at most {bound:.3g} seed-steps/s by {by}, "
                  f"{row['seed_steps_per_s']:.3g} measured: {100 * row['fraction_of_bound']:.0f} %")  # fmt: skip


def run(args):
    args.out = local_path("--out", args.out)
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out must be a directory, got {str(args.out)!r}, a file")
    configure(args.devices)
    mesh = devices_mesh()
    work = base_work(args)
    args.out.mkdir(parents=True, exist_ok=True)
    environment, limits = machine(mesh), measure_limits(mesh, args.tiny)
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    print(f"{environment['cpu']}, {environment['cores']} cores, load {environment['load_average_before']}; {versions}")
    bench = Bench(work, mesh, Draws(work, mesh, test=True), args.tiny)
    print(f"compiled the drawing of data and weights in {bench.draws.compile_seconds:.1f} s", flush=True)
    if args.only in (None, "table"):
        cores, processes = environment["cores"], {}
        if importlib.util.find_spec("torch") is None:
            print("PyTorch is left out, torch is not installed: pip install -e '.[bench]' or make bench EXTRA=bench")
        else:
            processes = {"pytorch": Torch(cores, 1), "pytorch, one process": Torch(1, 1 if args.tiny else cores)}
        try:
            table(bench, processes)
        finally:
            for each in processes.values():
                each.close()
    if args.only in (None, "sharing"):
        sharing(bench)
    if args.only in (None, "scans") and not args.tiny:
        scans(bench)
    if args.only in (None, "scans"):
        law(bench)
    if args.only == "base":
        point(bench, "base", work, bench.draws)
    limits = limits.best(measure_limits(mesh, args.tiny))
    report(bench, limits)
    if args.only in (None, "scans") and mesh.size > 1 and not args.tiny:
        bench.rows += one_device(args)
    gbs = {str(size): round(each, 1) for size, each in limits.gbs.items()}
    environment["limits"] = {"gflops": round(limits.gflops, 1), "gbs": gbs}
    environment["load_average_after"] = round(os.getloadavg()[0], 2)
    with open(args.out / "throughput.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(bench.rows)
    (args.out / "machine.json").write_text(json.dumps(environment, indent=1) + "\n", encoding="utf-8")
    print(f"{len(bench.rows)} rows -> {args.out / 'throughput.csv'}")


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR", default="results/throughput")
    parser.add_argument("--steps", type=count, help="optimizer steps, a multiple of 50; default 200")
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes: a smoke test, no measurement")
    parser.add_argument("--devices", type=count, help="CPU devices, default one per core")
    parser.add_argument(
        "--only", choices=["table", "sharing", "scans", "base"], help="one part only; base: one point of the scans"
    )
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
