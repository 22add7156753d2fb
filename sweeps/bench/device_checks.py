"""What does device.py check? One part a process: `python device_checks.py PART --seconds S --folder DIR [--tiny]`.

Every finding is a line of JSON on standard output. No experiment of its own: device.py runs it, and says what it finds.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contenders
import jax
import jax.numpy as jnp
import numpy as np
import optax
from contenders import Draws, Engine, Lane, Optimizer, Work, devices_mesh, number
from jax.sharding import AxisType
from limits import median_seconds
from throughput import TOLERANCE, agreement

import jaxsign as js
from jaxsign.cli.console import configure
from jaxsign.compilation import cores
from jaxsign.store.environment import package_versions, physical_memory
from jaxsign.sweep import execute
from jaxsign.systems.two_layer.engines import ENGINES
from jaxsign.systems.two_layer.feature_gradient import value_and_gradient
from jaxsign.systems.two_layer.features import FeatureData, FeatureParams, Inner
from jaxsign.training.start import begin

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
SIGN_GD = contenders.OPTIMIZERS["SignGD"]
#: eps=1e-30: homogeneous to the last bit of 64, which feature_space and its like need.
OPTIMIZERS = {
    "SignGD": SIGN_GD,
    "Adam": Optimizer(functools.partial(optax.adam, eps=1e-30), 1e-4),
    "GD": contenders.OPTIMIZERS["GD"],
}
OBSERVED = (
    "train_loss", "test_loss", "test_error", "sign_agreement", "value_signal", "value_noise", "query_signal",
    "key_signal", "query_noise", "key_noise", "s11", "s21", "log_s21",
)  # fmt: skip


class Report:
    """Writes the findings of one part as they are made.

    Args:
      seconds: after which the part is cut off.
      tiny: a smoke test: smallest sizes, no measurement.
      folder: what one part leaves to the next.
    """

    def __init__(self, seconds: float, tiny: bool, folder: Path):
        self.end, self.tiny, self.folder = time.monotonic() + seconds, tiny, folder

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def add(
        self, check: str, value: float | None, unit: str = "", limit: float | None = None, note: str = "", **more: Any
    ) -> None:
        """One finding; it fails unless `value` <= `limit`, and is for information where there is no limit."""
        verdict = "info" if limit is None else "ok" if value is not None and value <= limit else "FAIL"
        row = {"check": check, "verdict": verdict, "value": value, "unit": unit, "limit": limit, "note": note}
        print(json.dumps(row | more), flush=True)

    def skip(self, check: str, why: str) -> None:
        """A check that is left out."""
        print(json.dumps({"check": check, "verdict": "skipped", "note": why}), flush=True)

    @contextlib.contextmanager
    def checking(self, check: str) -> Iterator[None]:
        """Turns an exception into a finding, so that the checks after it go on."""
        try:
            yield
        except Exception as error:  # of any kind: this is what the script is there to find
            note = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            print(json.dumps({"check": check, "verdict": "ERROR", "note": note}), flush=True)

    def fits(self, check: str, seconds: float) -> bool:
        """Whether the next check can be done in the time that is left; otherwise it is reported as skipped."""
        if self.left >= seconds:
            return True
        self.skip(check, f"{self.left:.0f} s left, it may take {seconds:.0f} s")
        return False


def engines(problem: js.Problem) -> list[str]:
    """The engines that train the draws of a seed, and are exact for the problem; dense first."""
    found = []
    for name in ENGINES:
        if name not in ("auto", "feature_space_law"):
            with contextlib.suppress(ValueError):
                js.two_layer(problem, name)
                found.append(name)
    return found


def work(tiny: bool, steps: int, every: int, test: bool = False, supports: str = "disjoint") -> Work:
    """The sizes of the paper-like preset."""
    problem, hyper = js.presets.paper_like()
    problem = dataclasses.replace(problem, supports=supports)
    if tiny:
        problem = dataclasses.replace(problem, n=4, d=60, s=5, m_k=3, m_v=3, n_test=5)
        steps, every = 12, 6
    return Work(problem, jax.tree.map(number, hyper), steps, every, test)


def platform() -> str:
    return jax.local_devices()[0].platform


def cpu_mesh() -> Any:
    """One CPU device of this process, as a reference for another one.

    Raises:
      RuntimeError: if JAX runs without its CPU backend.
    """
    return jax.make_mesh((1,), ("run",), axis_types=(AxisType.Auto,), devices=jax.local_devices(backend="cpu")[-1:])


def memory() -> int:
    """Bytes of a device that a program may use; at most 1 GiB of a CPU, which no sweep needs to fill."""
    stats = jax.local_devices()[0].memory_stats() if platform() != "cpu" else None
    return int(stats["bytes_limit"]) if stats else min((physical_memory() or 2**32) // 4, 2**30)


def bytes_of(compiled: Any) -> int | None:
    """Arguments, results and intermediate arrays of a program on one device; None where XLA does not say."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return None
    parts = (sizes.argument_size_in_bytes, sizes.output_size_in_bytes, sizes.temp_size_in_bytes)
    return sum(parts) - sizes.alias_size_in_bytes


def starts(draws: Draws, runs: int, engine: Engine, test: bool = False) -> Any:
    """The first runs of an engine. All parts draw test sets, so that they share one program."""
    start = draws.first(runs, engine.task, engine.degree)
    return start if test else start._replace(test=None)


def written_out(draws: Draws, runs: int, what: Work) -> Any:
    """The first runs as the textbook program takes them."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *contenders.written_out(draws, runs, what))


def tiled(runs: Any, count: int) -> Any:
    """`count` runs: the given ones again and again."""
    return jax.tree.map(lambda a: a[np.arange(count) % a.shape[0]], runs)


def apart(mine: Any, theirs: Any) -> float:
    """The largest difference, over the largest number there is; infinite where only one of them is NaN."""
    mine, theirs = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    if mine.shape != theirs.shape or (np.isnan(mine) != np.isnan(theirs)).any():
        return float("inf")
    known = ~np.isnan(theirs)
    if not known.any():
        return 0.0
    return float(np.max(np.abs(mine[known] - theirs[known])) / max(np.max(np.abs(theirs[known])), 1e-300))


def furthest(mine: dict, theirs: dict) -> tuple[float, str]:
    """(the largest difference of the observables that both have, the name of that one)."""
    shared = [name for name in mine if name in theirs]
    return max((apart(mine[name], theirs[name]), name) for name in shared)


# ----------------------------------------------------------------------------------------------------------- parts


def device(report: Report) -> None:
    """Which device it is, whether its products are float32 ones, and whether it draws what a CPU draws."""
    devices, flags = jax.local_devices(), os.environ.get("XLA_FLAGS", "")
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    report.add(f"{len(devices)} x {devices[0].device_kind}", memory() / 2**30, "GiB",
               note=f"XLA_FLAGS={flags!r}; {versions}", platform=platform())  # fmt: skip
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 512, 512)).astype(np.float32)
    scale = np.abs(a).astype(np.float64) @ np.abs(b)
    for precision, limit in (("highest", 1e-6), ("default", None)):
        with report.checking(f"product, precision {precision}"):
            product = jax.jit(functools.partial(jnp.matmul, precision=precision))(a, b)
            error = np.max(np.abs(np.asarray(product, np.float64) - a.astype(np.float64) @ b) / scale)
            report.add(f"product, precision {precision}", float(error), "relative", limit, "against NumPy in float64")
    with report.checking("draws"):
        what = work(report.tiny, 50, 50, test=True)
        task = js.two_layer(what.problem)

        def one(seed: Any, hyper: Any) -> Any:
            return begin(task, jax.random.key(seed, impl="threefry2x32"), hyper)

        drawing = jax.jit(lambda seeds, hyper: jax.lax.map(lambda seed: one(seed, hyper), seeds))
        both = []
        for where in (jax.local_devices()[0], jax.local_devices(backend="cpu")[-1]):
            with jax.default_device(where):
                both.append(jax.tree.map(np.asarray, drawing(np.arange(16, dtype=np.int32), what.hyper)))
        here, there = both
        leaves = list(zip(jax.tree.leaves(here), jax.tree.leaves(there)))
        whole = [(a, b) for a, b in leaves if not np.issubdtype(a.dtype, np.floating)]
        floats = [(a, b) for a, b in leaves if np.issubdtype(a.dtype, np.floating)]
        wrong = sum(int((a != b).sum()) for a, b in whole)
        report.add("draws, integers that differ from a CPU's", wrong, "", 0, "labels, slots and supports of 16 runs")
        report.add("draws, floats against a CPU's", max(apart(a, b) for a, b in floats), "relative", 1e-6,
                   "noise and weights of 16 runs")  # fmt: skip
        same = sum(int((a == b).sum()) for a, b in floats) / sum(a.size for a, _ in floats)
        report.add("draws, floats with a CPU's bits", 100 * same, "%")


def equal(report: Report) -> None:
    """Every engine and the textbook program against dense, on the same draws and in 64 bits."""
    mesh = devices_mesh()
    width, longest, draws = (1 if report.tiny else 4), 0.0, {}
    cases = [("disjoint", "SignGD"), ("independent", "SignGD"), ("disjoint", "Adam"), ("disjoint", "GD")]
    for supports, optimizer in cases[: 2 if report.tiny else None]:
        what, rule = work(report.tiny, 200, 50, True, supports), OPTIMIZERS[optimizer]
        names, expected = engines(what.problem), None
        references = ["textbook", "dense on a CPU"] if (supports, optimizer) == cases[0] else []
        with report.checking(f"draws, {supports}"):
            draws.setdefault(supports, Draws(what, mesh, True, names))
        for name in (*names, *references):
            check = f"{name} = dense: {optimizer}, {supports}"
            if supports not in draws or not report.fits(check, 1.5 * longest):
                continue
            started = time.monotonic()
            with report.checking(check):
                on = cpu_mesh() if name == "dense on a CPU" else mesh
                lane, trace = trained(name, what, rule, draws[supports], width, on)
                if expected is None:
                    expected, losses = trace, trace["train_loss"]
                    report.add(f"dense: {optimizer}, {supports}", float(not np.isfinite(losses).all()), "", 0,
                               f"mean training loss {losses[:, 0].mean():.4f} to {losses[:, -1].mean():.4f} in "
                               f"{what.steps} steps of {losses.dtype}, must be finite")  # fmt: skip
                else:
                    found, worst = furthest(trace, expected)
                    shared = sum(each in expected for each in trace)
                    report.add(check, found, "relative", 1e-9, f"{shared} observables, {worst} is furthest",
                               compile_s=round(lane.compile_seconds, 2))  # fmt: skip
            longest = max(longest, time.monotonic() - started)


def trained(name: str, what: Work, rule: Optimizer, draws: Draws, width: int, mesh: Any) -> tuple[Lane, dict]:
    """(the program, the trace) of the first runs by an engine or the textbook program; dense and all have the same."""
    runs = width * draws.mesh.size
    if name == "textbook":
        own = written_out(draws, runs, what)
        lane = Lane(contenders.textbook(what, rule), own, width, mesh, library=False)
    else:
        engine = Engine(what, name.split()[0], rule, OBSERVED)
        own = starts(draws, runs, engine, test=True)
        lane = Lane(engine.run, own, width, mesh, library=True)
    return lane, lane.load(own)()


def resumed_sweep(tiny: bool) -> js.Sweep:
    """What is interrupted and resumed."""
    what = work(tiny, 200, 20)
    chosen = [name for name in engines(what.problem) if name != "support"]  # it trains as dense does
    return js.Sweep(
        system=js.two_layer, problem=what.problem, hyper=jax.tree.map(float, what.hyper), steps=80 if tiny else 200,
        record=20, test_every=100, optimizers={"adam": js.grid(optax.adam, learning_rate=[1e-4], eps=1e-15)},
        axes={"engine": chosen[-1:] if tiny else chosen, "seed": 4 if tiny else 64},
    )  # fmt: skip


def interrupt(report: Report) -> None:
    """Runs a sweep, and once more up to a checkpoint, where SIGINT ends it."""
    made = resumed_sweep(report.tiny)
    with report.checking("whole sweep"):
        started = time.monotonic()
        whole = js.run_sweep(made, report.folder / "whole")
        seconds, bad = time.monotonic() - started, int((whole["status"] != 0).sum())
        report.add("whole sweep, runs that did not finish", bad, "", 0,
                   f"{made.size} runs x {made.steps} steps of Adam in {seconds:.1f} s with compilation")  # fmt: skip
    with report.checking("interrupted sweep"):
        save = execute.checkpoints.save

        def save_once(*arguments: Any) -> None:
            save(*arguments)
            os.kill(os.getpid(), signal.SIGINT)

        execute.checkpoints.save = save_once
        with contextlib.suppress(KeyboardInterrupt):
            js.run_sweep(made, report.folder / "cut", checkpoint_every=1e-3)
        execute.checkpoints.save = save
        finished = int((js.open_results(report.folder / "cut")["status"] == 0).sum())
        report.add("interrupted sweep, finished runs", finished, "", made.size - 1, f"of {made.size}, by SIGINT")


def resume(report: Report) -> None:
    """Completes the interrupted sweep and compares it with the whole one, bit by bit."""
    made, exact = resumed_sweep(report.tiny), platform() == "cpu" or DETERMINISTIC in os.environ.get("XLA_FLAGS", "")
    with report.checking("resumed sweep"):
        resumed = js.run_sweep(made, report.folder / "cut").load()
        whole = js.open_results(report.folder / "whole").load()
        differing, largest = [], 0.0
        for name in whole.data_vars:
            a, b = whole[name].values, resumed[name].values
            if a.tobytes() != b.tobytes():
                differing.append(name)
                largest = max(largest, apart(b, a))
        note = (
            f"up to {largest:.1e} of their size: {', '.join(differing)}"
            if differing
            else f"all {len(whole.data_vars)} are bit-identical"
        )
        report.add("resumed sweep, variables that differ", len(differing), "", 0 if exact else None, note)
        losses = apart(resumed["train_loss"].values, whole["train_loss"].values)
        report.add("resumed sweep, training losses", losses, "relative", 1e-3, "whatever the flags are")
        says = json.loads(resumed.attrs["manifest"])["resume"]
        report.add(
            "manifest promises what holds", float(says == "bit-identical" and bool(differing)), "", 0, f"resume: {says}"
        )


def extremes(size: float, rng: np.random.Generator) -> tuple[FeatureParams, FeatureData]:
    """Random features so large that attention and loss decay to exp(-300) and less, in float32."""
    n, rows, one = 20, 20, np.ones((), np.float32)

    def inner(*shape: int) -> Inner:
        signal, noise = rng.standard_normal(shape), rng.standard_normal((*shape, n, 1))
        return Inner(*(np.asarray(size * each, np.float32) for each in (signal, noise)), one)

    y = rng.choice([-1.0, 1.0], n).astype(np.float32)
    data = FeatureData(
        y=y, y_clean=y, signal_slot=np.zeros(n, np.int32), mu=np.float32(1.5), alpha=np.float32(0),
        metric=np.ones((n, 1), np.float32), value_metric=one, weight=np.full(n, 1 / n, np.float32),
    )  # fmt: skip
    return FeatureParams(inner(rows), inner(rows), inner()), data


def widened(x: Any) -> np.ndarray:
    """A 32-bit array with 64 bits; others as they are."""
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype == np.float32 else x


def votes(report: Report) -> None:
    """Signs of gradients below what 32 bits hold, on hardware that keeps subnormal numbers or does not."""
    with report.checking("subnormals"):
        kept = jax.jit(lambda x: (jnp.float32(1e-20) * x, jnp.exp(-x * 9.5e20), jnp.sign(x * jnp.float32(1e-20))))
        product, exponential, sign = (float(each) for each in kept(np.float32(1e-19)))
        says = f"1e-20 x 1e-19 = {product:g}, exp(-95) = {exponential:g}, sign(1e-39) = {sign:g}"
        report.add("device keeps subnormal products", float(product != 0), "", note=says)
    with report.checking("signs of extreme gradients"):
        rng, wrong, close, total = np.random.default_rng(0), 0, 0, 0
        gradient = jax.jit(lambda params, data: value_and_gradient(params, data, True)[1])
        for size in (0.5, 2.0, 6.0, 9.0):
            params, data = extremes(size, rng)
            mine = jax.tree.leaves(gradient(params, data))
            with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
                theirs = jax.tree.leaves(gradient(*jax.tree.map(widened, (params, data))))
            for a, b in zip(mine, theirs):
                a, b = np.asarray(a), np.asarray(b)
                clear = np.abs(b) > 1e-3 * np.max(np.abs(b), initial=0)
                wrong += int((np.sign(a) != np.sign(b))[clear].sum())
                close, total = close + int((~clear & (b != 0)).sum()), total + b.size
        note = f"of {total}, down to exp(-300) and less; float64 on a CPU decides; {close} near ties are left out"
        report.add("wrong signs of extreme gradients", wrong, "", 0, note)
    with report.checking("far below underflow"):
        what, names = work(report.tiny, 900, 100), ["train_loss", "query_noise"]
        draws, frozen = Draws(what, devices_mesh(), True, engines(what.problem)), {}
        for name in ("feature_space", "dense"):
            engine = Engine(what, name, SIGN_GD, names)
            start = jax.tree.map(lambda a: a[0], starts(draws, 1, engine))
            narrow = jax.jit(engine.train)(start)
            frozen[name] = int(narrow["watch"]["first_frozen_step"])
            if name == "feature_space":
                with jax.enable_x64(True):
                    same = dataclasses.replace(what, hyper=jax.tree.map(widened, what.hyper))
                    wide = jax.jit(Engine(same, name, SIGN_GD, names).run)(jax.tree.map(widened, start))
                for observable, note in zip(names, ("", "a sixth of one step")):
                    difference = np.max(np.abs(np.asarray(narrow["trace"][observable]) - np.asarray(wide[observable])))
                    report.add(f"feature_space, {observable} in 32 bits against 64", float(difference), "", 1e-3,
                               f"{note or 'nat'}, {what.steps} steps of SignGD")  # fmt: skip
        report.add("feature_space: first frozen step + 1", frozen["feature_space"] + 1, "", 0, "0: none is frozen")
        report.add(
            "dense: first frozen step", frozen["dense"], "step", note="-1: none; later where subnormals are kept"
        )


def widths(tiny: bool) -> tuple[int, ...]:
    """Runs of a lane that are tried: what `run_sweep` takes, and more."""
    if tiny:
        return (2,)
    return (4, 32) if platform() == "cpu" else (64, 512, 4096)


def speed(report: Report) -> None:
    """Seed-steps per second of every engine and the textbook program, without test metrics, and what they take."""
    mesh, traces, longest = devices_mesh(), {}, 0.0
    works = {supports: work(report.tiny, 200, 50, supports=supports) for supports in ("disjoint", "independent")}
    names = {supports: engines(what.problem) for supports, what in works.items()}
    draws = {supports: Draws(what, mesh, True, names[supports]) for supports, what in works.items() if not report.tiny}
    draws.setdefault("disjoint", Draws(works["disjoint"], mesh, True, names["disjoint"]))
    rivals = [("disjoint", name) for name in ("textbook", *names["disjoint"][-1 if report.tiny else 0 :])]
    # Dense does the same work whatever the supports are.
    rivals += [("independent", name) for name in names["independent"][1:] if "independent" in draws]
    for width in widths(report.tiny):
        for supports, name in rivals:
            check, what = f"{name}, {supports}, lanes of {width}", works[supports]
            if not report.fits(check, 1.5 * longest):
                continue
            started = time.monotonic()
            with report.checking(check):
                rate, lane, trace = timed(name, what, draws[supports], width, 1 if report.tiny else 3)
                if supports == "disjoint":
                    traces.setdefault(name, trace)
                size = bytes_of(lane.program)
                size = None if size is None else size // width
                shown = "" if size is None else f", {size / 1e6:.3g} MB a run"
                report.add(check, rate, "seed-steps/s", note=f"compiled in {lane.compile_seconds:.1f} s{shown}",
                           lane_width=width, compile_s=round(lane.compile_seconds, 2), bytes_per_run=size)  # fmt: skip
            longest = max(longest, time.monotonic() - started)
    with report.checking("losses in 32 bits"):
        report.add("last training losses in 32 bits", agreement(traces), "", TOLERANCE, "engines and textbook")


def timed(name: str, what: Work, draws: Draws, width: int, repeats: int) -> tuple[float, Lane, dict]:
    """(seed-steps/s of one lane a device, its program, the trace of the drawn runs) with SignGD."""
    if name == "textbook":
        run, own = contenders.textbook(what, SIGN_GD), written_out(draws, draws.block, what)
    else:
        engine = Engine(what, name, SIGN_GD)
        run, own = engine.run, starts(draws, draws.block, engine)
    lane = Lane(run, own, width, draws.mesh, library=name != "textbook")
    call = lane.load(tiled(own, lane.block))
    trace = jax.tree.map(lambda a: a[: draws.block], call())
    return round(lane.block * what.steps / median_seconds({"": call}, repeats)[""], 1), lane, trace


def size(report: Report) -> None:
    """The most runs that one call holds, in lanes as `run_sweep` maps them, and that this many do run."""
    width, names = widths(report.tiny)[-1], engines(work(report.tiny, 4, 2).problem)
    what, room, longest = work(report.tiny, 4, 2), 2**21 if report.tiny else memory(), 0.0
    draws = Draws(what, devices_mesh(), True, names)

    def program(engine: Engine, own: Any, lanes: int) -> Any:
        """The compiled program of some lanes on one device."""
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((lanes, width, *a.shape[1:]), a.dtype), own)
        return jax.jit(lambda starts: jax.lax.map(jax.vmap(engine.run), starts)).lower(shapes).compile()

    for name in names[-1:] if report.tiny else names:
        check = f"{name}, runs of one call"
        if not report.fits(check, 2 * longest):
            continue
        started = time.monotonic()
        with report.checking(check):
            engine = Engine(what, name, SIGN_GD)
            own = starts(draws, draws.block, engine)
            few, more = (bytes_of(program(engine, own, lanes)) for lanes in (2, 4))
            if few is None or more is None:
                report.skip(check, "XLA does not say what a program takes")
                continue
            lane = max((more - few) // 2, 1)
            lanes = 2 ** int(np.log2(max(0.9 * (room - few) / lane, 1)))
            place = np.tile(np.arange(width) % draws.block, (lanes, 1))
            spread = jax.jit(lambda own, place: jax.tree.map(lambda a: jnp.asarray(a)[place], own))(own, place)
            compiled, begun = program(engine, own, lanes), time.monotonic()
            losses = np.asarray(compiled(spread)["train_loss"])
            seconds, one = time.monotonic() - begun, losses[0].tobytes()
            report.add(check, lanes * width, "runs", bytes_per_run=lane // width,
                       note=f"{lane * lanes / 2**30:.3g} of {room / 2**30:.3g} GiB on one device, {lanes} lanes of "
                            f"{width}, {what.steps} steps in {seconds:.2f} s")  # fmt: skip
            other = sum(each.tobytes() != one for each in losses)
            report.add(f"{name}, lanes that differ from their copies", other, "", 0, "the same runs in every lane")
            del spread
        longest = max(longest, time.monotonic() - started)


def law(report: Report) -> None:
    """Whether runs drawn in distribution have the dense draws' mean losses."""
    mesh, what = devices_mesh(), work(report.tiny, 200, 50, test=not report.tiny)
    width, last = (8 if report.tiny else 256), {}
    for name in ("feature_space", "feature_space_law"):
        with report.checking(f"{name}: means"):
            lane, draw, _ = contenders.drawn_in_lanes(Engine(what, name, SIGN_GD), what, width, mesh)
            last[name] = {key: value[:, -1] for key, value in lane.load(draw())().items()}
    if len(last) == 2:
        theirs, mine = last.values()
        for key in (key for key in ("train_loss", "test_loss", "value_signal") if key in mine):
            a, b = mine[key], theirs[key]
            error = np.sqrt((a.var() + b.var()) / a.size)
            report.add(f"feature_space_law: mean {key}", float(abs(a.mean() - b.mean()) / error), "standard errors", 5,
                       f"{a.mean():.4g} and {b.mean():.4g} over {a.size} runs each")  # fmt: skip


PARTS = {part.__name__: part for part in (device, equal, interrupt, resume, votes, speed, size, law)}


def main(argv: list[str] | None = None) -> int:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    if args.part in ("interrupt", "resume"):  # with the flags that they are given
        jax.config.update("jax_num_cpu_devices", cores())
    else:
        configure(x64=args.part == "equal")
    report = Report(args.seconds, args.tiny, args.folder)
    with report.checking(args.part):
        PARTS[args.part](report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
