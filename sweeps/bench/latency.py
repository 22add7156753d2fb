"""How long does a user wait for the first numbers, and for the next ones?

Every case is a whole process, repeated; the table has medians of wall and CPU seconds beside the bars that they are
held to. "cold" starts with an empty cache of compiled programs, "warm" with the one that cold runs have filled; the
other cases are calls inside a warm process. The textbook program is that of contenders.py, compiled, its draws not
counted, at its best lane width.

Command: python sweeps/bench/latency.py --out results/latency      (about 6 minutes on 2 cores)
Figure:  python figures/latency.py --results results --out results/figures
"""

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

#: case: (what it is, bar, which of wall and CPU seconds the bar is about, or "ratio").
CASES = {
    "import": ("import jaxsign, after jax and optax", 0.3, "cpu"),
    "cold": ("README's example, new process, empty cache", 9.0, "cpu"),
    "warm": ("README's example, new process, warm cache", 3.5, "wall"),
    "again": ("the same call again in that process", 0.5, "wall"),
    "seeds": ("8 more seeds of it in its directory", 1.0, "wall"),
    "sweep": ("16 seeds x 300 paper-like steps, engine auto, second call", None, "wall"),
    "textbook": ("the compiled textbook program, the same 16 runs", None, "wall"),
    "ratio": ("textbook over run_sweep", 1.5, "ratio"),
}


class Clock:
    """Wall and CPU seconds of what runs inside `with`."""

    def __enter__(self):
        self.begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *reason):
        self.wall, self.cpu = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]


def example(seeds, tiny):
    """README's example."""
    import optax

    import jaxsign as js

    return js.Sweep(
        system=js.two_layer,
        problem=js.Problem(n=10, d=500, s=20, m_k=10, m_v=10, n_test=200),
        hyper=js.Hyper(sigma_p=2.0, mu=1.0, sigma_0=3e-3),
        optimizers={
            "sign_gd": js.grid(js.sign_gd, learning_rate=[3e-4, 1e-3]),
            "mine": optax.chain(optax.trace(decay=0.9), optax.scale(-0.03)),
        },
        axes={"snr": [0.05, 0.2, 1.0], "seed": seeds},
        steps=20 if tiny else 500,
        levels=[0.3],
    )


def measured_import(directory, tiny):
    """CPU seconds that `import jaxsign` adds."""
    del directory, tiny
    import jax
    import optax

    del jax, optax
    with Clock() as clock:
        import jaxsign  # noqa: F401
    return {"import": clock}


def measured_example(directory, tiny):
    """One process: the example, the same call again, and 8 more seeds in a directory."""
    import jaxsign as js

    js.run_sweep(example(4, tiny))
    with Clock() as again:
        js.run_sweep(example(4, tiny))
    out = Path(directory) / "extended"
    shutil.rmtree(out, ignore_errors=True)
    js.run_sweep(example(4, tiny), out=out)
    with Clock() as seeds:
        js.run_sweep(example(12, tiny), out=out)
    return {"again": again, "seeds": seeds}


def measured_first(directory, tiny):
    """One process: the example and nothing else."""
    del directory
    import jaxsign as js

    js.run_sweep(example(4, tiny))
    return {}


def measured_textbook(directory, tiny):
    """One process: 16 paper-like runs by `run_sweep`, called a second time with other seeds, and by the textbook."""
    del directory
    import jax
    import numpy as np
    from contenders import OPTIMIZERS, TEXTBOOK, Draws, Lane, Work, devices_mesh, textbook, written_out

    import jaxsign as js

    problem, hyper = js.presets.paper_like()
    steps, runs = (50, 2) if tiny else (300, 16)

    def sweep(first):
        return js.Sweep(
            system=js.two_layer, problem=problem, hyper=hyper,
            optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=OPTIMIZERS["SignGD"].rate)},
            engine="auto", observables=["train_loss", "sign_agreement", "value_signal"], steps=steps, record=50,
            axes={"seed": list(range(first, first + runs))},
        )  # fmt: skip

    js.run_sweep(sweep(0))
    with Clock() as ours:
        js.run_sweep(sweep(runs))
    mesh, work = devices_mesh(), Work(problem, hyper, steps, 50)
    draws = Draws(work, mesh, test=False, engines=["dense"])
    written = written_out(draws, runs, work)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *written)
    clocks = []
    for width in (*TEXTBOOK, runs):
        call = Lane(textbook(work, OPTIMIZERS["SignGD"]), stacked, width, mesh, library=False).load(stacked)
        call()
        with Clock() as clock:
            call()
        clocks.append(clock)
    return {"sweep": ours, "textbook": min(clocks, key=lambda clock: clock.wall)}


MEASURES = {
    "import": measured_import, "first": measured_first, "example": measured_example, "textbook": measured_textbook,
}  # fmt: skip


def process(measure, directory, tiny):
    """({case: (wall, cpu)} of a fresh process, its own (wall, cpu))."""
    command = [sys.executable, __file__, "--out", str(directory), "--measure", measure, *["--tiny"] * tiny]
    environment = {**os.environ, "JAXSIGN_COMPILATION_CACHE": str(directory / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]), (wall, cpu)


def measure_all(out, repeats, tiny):
    """{case: [(wall, cpu), ...]}, the cases in turn so that a slow minute of the machine falls on all of them."""
    times = {case: [] for case in CASES}
    for _ in range(repeats):
        shutil.rmtree(out / "cache", ignore_errors=True)
        times["cold"].append(process("first", out, tiny)[1])
        times["warm"].append(process("first", out, tiny)[1])
        for name in ("import", "example", "textbook"):
            for case, seconds in process(name, out, tiny)[0].items():
                times[case].append(tuple(seconds))
        textbook, ours = times["textbook"][-1], times["sweep"][-1]
        times["ratio"].append((textbook[0] / ours[0], textbook[1] / ours[1]))
        print(f"{len(times['cold'])} of {repeats} rounds", flush=True)
    shutil.rmtree(out / "cache", ignore_errors=True)
    shutil.rmtree(out / "extended", ignore_errors=True)
    return times


def table(times):
    """Rows (case, what, wall, cpu, lowest, highest, bar, of, met) of the medians."""
    rows = []
    for case, (what, bar, of) in CASES.items():
        wall, cpu = (statistics.median(values) for values in zip(*times[case]))
        judged = [pair[of == "cpu"] for pair in times[case]]
        middle = statistics.median(judged)
        met = "" if bar is None else "yes" if (middle >= bar if of == "ratio" else middle <= bar) else "no"
        rows.append([case, what, *(round(x, 3) for x in (wall, cpu, min(judged), max(judged))), bar, of, met])
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="processes of each case (default 5)")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: one round of short sweeps, no figures")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)  # inside one of the processes
    args = parser.parse_args(argv)
    if args.measure:
        clocks = MEASURES[args.measure](Path(args.out), args.tiny)
        print(json.dumps({case: (clock.wall, clock.cpu) for case, clock in clocks.items()}))
        return 0
    from jaxsign.store.files import local_path  # not above: `import jaxsign` is one of the cases

    out = local_path("--out", args.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = table(measure_all(out, 1 if args.tiny else args.repeats, args.tiny))
    header = ("case", "what", "wall", "cpu", "lowest", "highest", "bar", "of", "met")
    with (out / "latency.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    for _, what, wall, cpu, _, _, bar, of, met in rows:
        held = f"bar {bar:g} {of}: {'met' if met == 'yes' else 'MISSED'}" if met else ""
        print(f"{what:60s} wall {wall:7.2f}  cpu {cpu:7.2f}  {held}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
