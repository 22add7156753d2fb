"""Faults of every file of a results directory, kills at every file operation and planted links: what becomes of them.

Each fault is put into a fresh copy of a directory, finished or cut off, with results, checkpoints and trajectories. A
process of its own then reads results and parameters, calls `verify`, runs the sweep's own command and does all of it
again; every number is compared with an undisturbed sweep's, bit by bit.

    flips      one bit of one file                     swaps      two files of one kind change places
    cuts       a file ends early                       copies     a file is written over another one of its kind
    losses     a file or folder is gone                edits      a field of a JSON file, its checksum is right
    links      a link in a file's or folder's place: nothing outside the directory may change
    kills      SIGKILL at the n-th file operation of a new, an extended, a sharded and a Dask sweep, which then goes on

detected: said, refused or mended, with right numbers all along. harmless: right numbers, and nothing to say. wrong: a
number that is not the undisturbed sweep's, a file outside that changed, or damage left behind that `verify` calls good.
traceback: any exception but the two documented ones. hang: more than LIMIT seconds.

Command: python sweeps/bench/faults.py --out results/faults [--tries 500] [--kills 100] [--seed 0]
Cost: see the last line that it prints.
Expected: 0 wrong, 0 traceback, 0 hang.
Writes: faults.csv, one row a kind; trouble.txt, one line for every fault that is neither detected nor harmless.
"""

import argparse
import collections
import contextlib
import csv
import functools
import io
import json
import os
import pickle
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxsign as js
from jaxsign.cli import command as cli
from jaxsign.store.manifest import UnusableData, checksum
from jaxsign.sweep import execute as blocks
from jaxsign.validation.values import local_path, positive_int

#: Seconds after which a process that examines a directory counts as hanging.
LIMIT = 120.0
LIMITS = {"memory": 60_000, "lane_width": 2, "checkpoint_every": 0.05}
OUTCOMES = ("detected", "harmless", "wrong", "traceback", "hang")
KINDS = ("flips", "swaps", "cuts", "copies", "losses", "edits")


@functools.cache
def system(problem):
    """Least squares on points that are cheap functions of the key: a process is up in a second."""

    def points(key):
        u = jax.random.key_data(key).astype(float) / 2.0**32
        return jnp.sin(jnp.arange(96.0).reshape(8, 12) * (1 + u[0]) + u[1])

    def loss(params, data, hyper):
        return jnp.mean((data @ params["w"] + params["b"] - hyper["goal"] * data[:, 0]) ** 2)

    return js.Task(
        sample=lambda key, hyper, shared: points(key),
        init=lambda key, data, hyper: {"w": data[0], "b": jnp.zeros(())},
        loss=loss,
        observe=lambda params, data, test, hyper: {"train_loss": loss(params, data, hyper), "weight": params["w"]},
        name="least_squares",
    )


def sweep(seeds=4):
    return js.Sweep(
        system=system, problem=None, hyper={"goal": 1.0}, steps=1200, record=100, levels=[0.1],
        optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3, 3e-3])},
        axes={"goal": [0.5, 1.0], "seed": seeds}, observables=["train_loss", "weight"], trajectory="signs",
    )  # fmt: skip


# --- processes ------------------------------------------------------------------------------------------------------


def forked(work, limit=LIMIT):
    """What `work` returns in a fork of this process, in which JAX has not started; None where it was killed.

    Raises:
      TimeoutError: after `limit` seconds.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            blocks.CALL_SECONDS = 0.02
            found = pickle.dumps(work())
            while found:
                found = found[os.write(writing, found) :]
        os._exit(0)
    os.close(writing)
    parts, end = [], time.monotonic() + limit
    try:
        while select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(reading, 1 << 20)
            if not part:
                return pickle.loads(b"".join(parts)) if parts else None
            parts.append(part)
        raise TimeoutError
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def values(out, made):
    """{name: bytes} of every run that is there, results and parameters, and the number of runs."""
    ds = js.open_results(out).load()
    there = ds["status"].values >= 0
    found = {}
    for name, variable in ds.data_vars.items():
        for place in np.argwhere(there):
            found[name, tuple(place)] = np.asarray(variable.values[tuple(place)]).tobytes()
    for name, variable in ds.coords.items():
        found["coordinate", name] = str(variable.values.tolist())
    kept = zip(np.argwhere(np.ones_like(there)), js.open_trajectory(out, made)) if there.all() else ()
    for place, run in kept:
        for step in (0, 333, 1200):
            leaves = jax.tree.leaves(run.params(step))
            found["parameters", step, tuple(place)] = b"".join(np.asarray(leaf).tobytes() for leaf in leaves)
    return found, int(there.sum())


def asked(question):
    """("same" with what was returned, "refused" or "traceback" with words)."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return "returned", question()
    except (UnusableData, ValueError) as error:
        return "refused", str(error)
    except Exception:
        return "traceback", traceback.format_exc(limit=-2)


def examine(out, made, right, finished):
    """What comes of a directory: [(question, outcome, words), ...], to be run in a process of its own."""
    found = []

    def ask(name, question):
        outcome, what = asked(question)
        if outcome == "returned" and name in ("read", "command", "read again"):
            numbers, count = what
            whole = count == 16 or (name == "read" and not finished)
            other = [key for key, value in numbers.items() if right.get(key) != value]
            outcome, what = ("same", "") if whole and not other else ("wrong", f"{count} runs, other: {other[:3]}")
        elif outcome == "returned":
            outcome, what = {0: "good"}.get(what, "refused"), f"exit {what}"
        found.append((name, outcome, what))
        return outcome

    def command():
        js.run_sweep(made, out, lane_width=2)
        return values(out, made)

    ask("read", lambda: values(out, made))
    ask("verify", lambda: cli.main(["verify", str(out)]))
    ran = ask("command", command)
    if ran == "same":
        if ask("verify again", lambda: cli.main(["verify", str(out)])) != "good":
            found.append(("verify again", "wrong", "not good after the sweep's own command"))
        if ask("read again", lambda: values(out, made)) != "same":
            found.append(("read again", "wrong", "not readable after the sweep's own command"))
    return found


def judged(found):
    """The outcome of a fault, and words where it is a bad one."""
    for bad in ("wrong", "traceback"):
        for name, outcome, words in found:
            if outcome == bad:
                return bad, f"{name}: {words}"
    return ("detected" if any(outcome == "refused" for _, outcome, _ in found) else "harmless"), ""


# --- faults ---------------------------------------------------------------------------------------------------------


def files_by_kind(out):
    """Files of a directory, by what they are."""
    kinds = collections.defaultdict(list)
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        top, name = file.relative_to(out).parts[0], file.name
        if top == "results.zarr":
            kind = "metadata" if name == "zarr.json" else "status" if "status" in file.parts else "chunks"
        elif name.endswith(".json"):
            kind = f"{top} records"
        else:
            kind = top
        kinds[kind].append(file)
    return kinds


def leaves_of(record, path=()):
    """Paths of every field of a JSON record."""
    if isinstance(record, dict | list) and record:
        pairs = record.items() if isinstance(record, dict) else enumerate(record)
        for key, value in pairs:
            yield from leaves_of(value, (*path, key))
    yield path


def edited(file, rng):
    """Changes one field of a JSON file and makes its checksum right; words for it."""
    record = json.loads(file.read_text())
    places = [place for place in leaves_of(record) if place and place[0] != "checksum"]
    place = rng.choice(places)
    holder = functools.reduce(lambda found, key: found[key], place[:-1], record)
    old = holder[place[-1]]
    ways = [lambda: None, lambda: -1, lambda: 2**70, lambda: "x" * 9, lambda: [], lambda: {}, lambda: 1e308]
    if isinstance(old, int | float):
        ways += [lambda: old + 1, lambda: old - 1, lambda: -old] * 2
    if isinstance(old, list) and len(old) > 1:
        ways += [lambda: old[::-1], lambda: old[1:], lambda: [*old, old[0]]] * 3
    if isinstance(old, str):
        ways += [lambda: old[::-1], lambda: old + "1"] * 2
    if rng.random() < 0.15 and isinstance(holder, dict):
        del holder[place[-1]]
    else:
        holder[place[-1]] = rng.choice(ways)()
    if "checksum" in record:
        record["checksum"] = checksum(record)
    file.write_text(json.dumps(record, indent=1))
    return ".".join(map(str, place))


def put(kind, out, rng):
    """Puts one fault into a directory; words for it."""
    kinds = files_by_kind(out)
    if kind == "edits":
        several = [file for name, files in kinds.items() if name.endswith("records") for file in files]
        # Every second one in the manifest, which is obeyed by all.
        file = out / "manifest.json" if rng.random() < 0.5 else rng.choice(several)
        return f"{file.relative_to(out)}: {edited(file, rng)}"
    if kind in ("swaps", "copies"):
        several = [files for files in kinds.values() if len(files) > 1]
        one, two = rng.sample(rng.choice(several), 2)
        first, second = one.read_bytes(), two.read_bytes()
        two.write_bytes(first)
        if kind == "swaps":
            one.write_bytes(second)
        return f"{one.relative_to(out)} and {two.relative_to(out)}"
    file = rng.choice(rng.choice(list(kinds.values())))
    if kind == "losses" and rng.random() < 0.2:
        folders = [path for path in out.rglob("*") if path.is_dir()]
        folder = rng.choice(folders)
        shutil.rmtree(folder)
        return f"{folder.relative_to(out)}/"
    raw = bytearray(file.read_bytes())
    if kind == "losses":
        file.unlink()
    elif kind == "cuts":
        file.write_bytes(raw[: rng.randrange(len(raw))] if raw else b"\0")
    elif raw:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        file.write_bytes(raw)
    else:
        file.write_bytes(b"\x01")
    return str(file.relative_to(out))


def planted(out, outside, rng):
    """Puts a link in the place of a file or folder, or under a name that a process will write; words for it."""
    names = ["locks/shard-0-of-1.lock", "locks/manifest.lock", "manifest.json", "locks", "checkpoints", "trajectories"]
    names += ["results.zarr", "results.zarr/status/c", "results.zarr/train_loss/c/0", "results.zarr/status/c/0/0/0"]
    name = rng.choice(names)
    place, victim = out / name, outside / rng.choice(["file", "folder"])
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(victim)
    return f"{name} -> {victim.name}"


def outside_of(folder):
    """Something of the user's that lies beside a directory: {path: content}."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


# --- kills ----------------------------------------------------------------------------------------------------------


def counting(out, last=None):
    """Counts file operations below a directory; SIGKILL at the last one."""
    count = [0]
    root = os.fspath(out)

    def hook(event, arguments):
        watched = event == "open" or event.startswith(("os.", "shutil."))
        if watched and any(
            isinstance(one, str | bytes | os.PathLike) and os.fsdecode(one).startswith(root) for one in arguments
        ):
            count[0] += 1
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def ran(out, made, shard=None, last=None):
    """Runs a sweep, and counts its file operations."""
    count = counting(out, last)
    js.run_sweep(made, out, shard=shard, **LIMITS)
    return count[0]


def killed(scenario, out, n):
    """A sweep that is killed at its n-th file operation; the process that goes on is the examination's own."""
    if scenario == "extended":
        forked(lambda: ran(out, sweep(2)))
    shards = [(0, 2), (1, 2)] if scenario == "sharded" else [None]
    done = [forked(lambda shard=shard: ran(out, sweep(), shard, n if shard == shards[0] else None)) for shard in shards]
    return done[0]


class Cluster:
    """A Dask scheduler and one worker on the loopback."""

    def __init__(self, folder):
        dask, address = [sys.executable, "-m", "dask"], folder / "scheduler.json"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        start = functools.partial(subprocess.Popen, env=environment, **quiet)
        self.processes = [
            start(
                [
                    *dask,
                    "scheduler",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    "0",
                    "--no-dashboard",
                    "--scheduler-file",
                    address,
                ]
            ),
            start([*dask, "worker", "--scheduler-file", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]),
        ]
        while not (address.exists() and address.read_text().endswith("}")):
            time.sleep(0.05)
        self.address = json.loads(address.read_text())["address"]

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        for process in self.processes:
            process.kill()
            process.wait()


def dask_killed(out, address, n):
    """As `killed`, the driver of a cluster's workers; in a process of its own, since its threads do not fork."""
    code = (
        f"import faults, jaxsign as js; faults.counting({str(out)!r}, {n}); "
        f"js.run_sweep(faults.sweep(), {str(out)!r}, scheduler={address!r}, **faults.LIMITS)"
    )
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": here}, capture_output=True, timeout=LIMIT,
    ).returncode  # fmt: skip


# --- the table ------------------------------------------------------------------------------------------------------


class Table:
    """Outcomes by kind, written after every fault."""

    def __init__(self, folder):
        self.folder, self.counts, self.trouble = folder, collections.defaultdict(collections.Counter), []

    def add(self, kind, outcome, words):
        """Counts one fault, and writes the table."""
        self.counts[kind][outcome] += 1
        if outcome not in ("detected", "harmless"):
            self.trouble.append(f"{kind}\t{outcome}\t{words}")
            print(f"{kind}: {outcome}: {words}", file=sys.stderr)
        with (self.folder / "faults.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["kind", "tries", *OUTCOMES])
            writer.writerows(self.rows())
        (self.folder / "trouble.txt").write_text("".join(f"{line}\n" for line in self.trouble))

    def rows(self):
        """Its rows, the last one of all kinds together."""
        counts = [*self.counts.items(), ("all", sum(self.counts.values(), collections.Counter()))]
        return [[kind, sum(found.values()), *(found[outcome] for outcome in OUTCOMES)] for kind, found in counts]

    def __str__(self):
        lines = [["kind", "tries", *OUTCOMES], *self.rows()]
        return "\n".join("".join(f"{cell!s:<12}" for cell in line).rstrip() for line in lines)


def judge(table, kind, words, out, right, finished):
    """Examines a directory in a process of its own and adds the outcome to the table."""
    try:
        found = forked(lambda: examine(out, sweep(), right, finished))
        outcome, bad = judged(found) if found else ("traceback", "the process ended without an answer")
    except TimeoutError:
        outcome, bad = "hang", ""
    table.add(kind, outcome, f"{words}: {bad}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/faults", help="folder of the table")
    parser.add_argument(
        "--tries", type=int, default=500, help="random faults of files, and a twenty-fifth as many links"
    )
    parser.add_argument("--kills", type=int, default=100, help="kills at file operations")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices")
    args = parser.parse_args()
    folder = local_path("out", args.out)
    folder.mkdir(parents=True, exist_ok=True)
    tries, kills = positive_int("tries", args.tries), positive_int("kills", args.kills, minimum=0)
    rng, table, begun = random.Random(args.seed), Table(folder), time.monotonic()
    for name in ("numcodecs.zstd", "tqdm", "xarray", "zarr", "orbax.checkpoint"):
        __import__(name)  # once, before the forks
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        jax.config.update("jax_compilation_cache_dir", str(place / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        whole, cut = place / "whole", place / "cut"
        operations = forked(lambda: ran(whole, sweep()))
        right, _ = forked(lambda: values(whole, sweep()))
        for last in range(operations * 2 // 3, 0, -7):  # cut off while checkpoints, segments and results are there
            shutil.rmtree(cut, ignore_errors=True)
            forked(lambda last=last: ran(cut, sweep(), None, last))
            if list(cut.glob("checkpoints/*/*.json")):
                break
        for i in range(tries):
            out, finished, kind = place / "out", i % 3 != 0, KINDS[i % len(KINDS)]
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(whole if finished else cut, out)
            words = put(kind, out, rng)
            judge(table, kind, f"{'finished' if finished else 'cut off'}: {words}", out, right, finished)
        for i in range(-(-tries // 25)):
            out, outside = place / "out", place / "outside"
            for old in (out, outside):
                shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(whole if i % 2 else cut, out)
            (outside / "folder").mkdir(parents=True)
            (outside / "file").write_text("a user's own")
            before, words = outside_of(outside), planted(out, outside, rng)
            judge(table, "links", words, out, right, bool(i % 2))
            if outside_of(outside) != before:
                table.add("links", "wrong", f"{words}: something outside changed")
        scenarios = ["new", "extended", "sharded"]
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(ImportError):
                import distributed  # noqa: F401

                scenarios.append("dask")
                cluster = stack.enter_context(Cluster(place))
            for i in range(kills):
                out, scenario = place / "out", scenarios[i % len(scenarios)]
                shutil.rmtree(out, ignore_errors=True)
                n = rng.randrange(1, operations)
                if scenario == "dask":
                    dask_killed(out, cluster.address, n)
                else:
                    killed(scenario, out, n)
                judge(table, f"kills, {scenario}", f"at operation {n}", out, right, False)
    print(table)
    print(f"{time.monotonic() - begun:.0f} s")
    bad = sum(sum(found[outcome] for outcome in OUTCOMES[2:]) for found in table.counts.values())
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
