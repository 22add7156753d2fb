"""Sweeps that are killed: SIGKILL at random moments, signals, lost shards; what is left goes on to the same bits."""

import functools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.cli import command as cli
from jaxsign.sweep import execute as blocks
from jaxsign.sweep import programs, recorder
from jaxsign.sweep.progress import listening
from jaxsign.trajectories import reader


@functools.cache
def system(problem):
    """Least squares on points that are cheap functions of the key: a child is up in a second."""

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


def sweep(**changes):
    """24 runs whose every step is kept."""
    base = {
        "system": system, "problem": None, "hyper": {"goal": 1.0}, "steps": 6000, "record": 100,
        "optimizers": {"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3, 3e-3])},
        "axes": {"goal": [0.5, 1.0], "seed": 6}, "observables": ["train_loss", "weight"], "trajectory": "signs",
    }  # fmt: skip
    return js.Sweep(**(base | changes))


LIMITS = {"memory": 60_000, "lane_width": 2, "checkpoint_every": 0.05}


def setup():
    """Settings of a child: two devices, calls of some hundredths of a second, everything compiled before."""
    jax.config.update("jax_num_cpu_devices", 2)
    blocks.CALL_SECONDS = 0.02
    recorder.KEYFRAME_EVERY = 300


def forked(work):
    """Runs `work` in a fork of this process, in which JAX has not started; its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            setup()
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def torture(folder, kills, seed):
    """Kills sweeps at random moments until there were enough kills; every directory is run to its end."""
    import preloaded  # noqa: F401

    rng, folder = random.Random(seed), Path(folder)
    outcome, at = {"kills": 0, "finished": 0, "stages": {}}, 0
    while outcome["kills"] < kills or at:
        out = folder / f"out-{outcome['finished']}"
        child = forked(lambda out=out: js.run_sweep(sweep(), out, **LIMITS))
        # Most children die while they train, some before.
        begun, last = len(list(out.glob("trajectories/*/*.segment"))), outcome["kills"] == kills
        early, delay = rng.random() < 0.2 and not last, rng.uniform(0, 0.5)
        end = time.monotonic() + (rng.uniform(0.1, 2) if early else 600)
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
            time.sleep(0.005)
            if (
                not last
                and not early
                and end - time.monotonic() > 1
                and len(list(out.glob("trajectories/*/*.segment"))) > begun
            ):
                end = time.monotonic() + delay
        if done[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            outcome["kills"] += 1
            at += 1
            found = "with a checkpoint" if list(out.glob("checkpoints/*/*.json")) else "without"
            outcome["stages"][found] = outcome["stages"].get(found, 0) + 1
        else:
            assert done[1] == 0, f"a child ended with {done[1]}"
            outcome["finished"] += 1
            at = 0
    print(json.dumps(outcome))


def values(out, made=None):
    """Every number of a results directory and every parameter of its trajectories, as bytes by name."""
    ds = js.open_results(out)
    found = {name: np.asarray(v).tobytes() for name, v in ds.data_vars.items()}
    # A user's functions are traced anew for every run, since what they read may have changed; those of `system` read
    # nothing, and one program draws the starts of all runs.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "drawing", programs._cached_drawing)
        for i, run in enumerate(js.open_trajectory(out, made or sweep())):
            for t, params in run.iter(every=701):
                found[f"{i}/{t}"] = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same sweep without any trouble, in this process: other calls, other keyframes, the same bits."""
    out = tmp_path_factory.mktemp("whole") / "out"
    js.run_sweep(sweep(), out, memory=LIMITS["memory"], lane_width=2)
    return values(out)


def killed_again_and_again(folder, kills, whole, seed=0):
    # By its module's name, which is part of the definition.
    code = f"import test_faults; test_faults.torture({str(folder)!r}, {kills}, {seed})"
    command, here = [sys.executable, "-c", code], Path(__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000, cwd=here)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not used" not in done.stderr  # every checkpoint that was complete was good
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["kills"] == kills
    print(outcome)
    for i in range(outcome["finished"]):
        assert values(folder / f"out-{i}") == whole
        assert not (folder / f"out-{i}" / "checkpoints").exists()
        shutil.rmtree(folder / f"out-{i}")
    return outcome


def test_twenty_sigkills_at_random_moments_change_no_bit(tmp_path, whole):
    outcome = killed_again_and_again(tmp_path, 20, whole)
    assert (
        outcome["stages"].get("with a checkpoint", 0) >= 5
    )  # killed while runs were under way, not only before or after


@pytest.mark.slow
def test_a_hundred_sigkills_at_random_moments_change_no_bit(tmp_path, whole):
    outcome = killed_again_and_again(tmp_path, 100, whole, seed=1)
    assert outcome["stages"].get("with a checkpoint", 0) >= 25


def script(code, *arguments):
    """A new Python that has this module as `t`, on two devices."""
    text = f"import sys, jax, jaxsign as js, test_faults as t\nt.setup()\n{code}"
    command = [sys.executable, "-c", text, *map(str, arguments)]
    here = Path(__file__).parent
    return subprocess.Popen(command, cwd=here, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run_code(code, arguments, words):
    """What a `child` does: in a fork, whose stderr becomes a file."""
    with open(words, "w") as file:
        os.dup2(file.fileno(), 2)
    sys.argv[1:] = arguments
    setup()
    exec(code, {"sys": sys, "jax": jax, "js": js, "t": sys.modules[__name__]})


class child:
    """Runs code as `script` does, in a fork of a process that has imported everything, which takes seconds."""

    forks = multiprocessing.get_context("forkserver")

    def __init__(self, code, *arguments):
        # Older forkservers find the module by this variable only.
        self.forks.set_forkserver_preload(["preloaded"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
            forkserver.ensure_running()
        self.folder = tempfile.TemporaryDirectory(prefix="jaxsign-child-")
        self.words = Path(self.folder.name) / "stderr"
        self.words.touch()
        self.process = self.forks.Process(target=run_code, args=(code, [*map(str, arguments)], str(self.words)))
        self.process.start()
        self.pid, self.kill = self.process.pid, self.process.kill

    def poll(self):
        return self.process.exitcode

    @property
    def returncode(self):
        return self.process.exitcode

    @property
    def stderr(self):
        return open(self.words)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self):
        """Waits for its end; ("", what it said)."""
        self.process.join()
        words = self.words.read_text()
        self.folder.cleanup()
        return "", words


def segments(out):
    return len(list(Path(out).glob("trajectories/*/*.segment")))


def until(condition, *processes, seconds=120):
    """Waits until a condition holds while processes live."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        for process in processes:
            assert process.poll() in (None, 0), process.stderr.read()[-2000:]
        time.sleep(0.01)


RUN = "js.run_sweep(t.sweep(), sys.argv[1], **t.LIMITS, shard=eval(sys.argv[2]))"


def test_three_shards_one_killed_the_others_undisturbed_and_the_grid_complete(tmp_path, whole):
    for attempt in range(4):  # on a busy machine the signal may come after the shard's last run
        out = tmp_path / f"out-{attempt}"
        shards = [child(RUN, out, (i, 3)) for i in range(3)]
        until(lambda out=out: len({f.parent for f in out.glob("trajectories/*/*.segment")}) >= 3, *shards)
        shards[1].kill()
        done = [process.communicate() for process in shards]
        assert [shards[i].returncode for i in (0, 2)] == [0, 0], done
        if shards[1].returncode == -signal.SIGKILL and js.open_results(out)["status"].min() == -1:
            break
    else:
        pytest.fail("no signal came in time")
    again = child(RUN, out, (1, 3))
    _, words = again.communicate()
    assert again.returncode == 0, words
    assert "which held shard 1/3, is gone: going on" in words
    assert values(out) == whole


def test_a_signal_ends_with_a_checkpoint_and_the_rest_goes_on(tmp_path, whole, capfd):
    out = tmp_path / "out"
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
        code = (
            "try: js.run_sweep(t.sweep(), sys.argv[1], **t.LIMITS)\nexcept KeyboardInterrupt as e: sys.exit(f'{e!r}')"
        )
        process, before = child(code, out), segments(out)
        until(lambda before=before: segments(out) > before + 2, process)
        asked = time.monotonic()
        process.send_signal(getattr(signal, name))
        _, words = process.communicate()
        assert time.monotonic() - asked < 30
        assert re.search(rf"Interrupted\('{name}: the next start goes on from step \d+ of 6000 of block \d+'\)", words)
        assert "runs are still to be run" in words
        assert list(out.glob("checkpoints/*/*.json"))
        block, step = re.search(r"from step (\d+) of 6000 of block (\d+)", words).groups()[::-1]
        capfd.readouterr()
        assert cli.main(["status", str(out)]) == 0
        assert f"block {block} at step {step} of 6000" in capfd.readouterr().out
    before, (checkpoint, *_) = set(out.glob("trajectories/*/*.segment")), out.glob("checkpoints/*/*.json")
    kept = {f: f.stat().st_mtime_ns for f in before}
    js.run_sweep(sweep(), out, **LIMITS)
    assert "not used" not in capfd.readouterr().err
    # The block that was under way went on at its checkpoint: what it had kept before was not made again.
    assert int(checkpoint.stem) > 0
    assert {f: f.stat().st_mtime_ns for f in before} == kept
    assert values(out) == whole


#: A sweep whose programs compile for an hour, which nothing can interrupt, as XLA's; "waiting" once it waits for them.
ENDLESS = """
import atexit, time
from jaxsign.sweep import execute, programs
threads = programs.ThreadPoolExecutor
programs.ThreadPoolExecutor = lambda **_: type("Slow", (threads,), {
    "submit": lambda self, function: threads.submit(self, time.sleep, 3600)})(max_workers=2)
ready, wait = execute.Compiled.ready, execute.Compiled.wait
execute.Compiled.ready = lambda *a: (print("waiting", flush=True), ready(*a))[1]
execute.Compiled.wait = lambda self: (print("waiting", flush=True), wait(self))[1]
atexit.register(lambda: print("atexit", file=sys.stderr))
"""
SCRIPT = "js.run_sweep(t.sweep(), sys.argv[1], **t.LIMITS)"
#: It measures the width of lanes first, with programs that it compiles for that.
COMMAND = "sys.exit(js.sweep_cli(lambda args: {'x': t.sweep()}, '')(['--out', sys.argv[1], '--devices', '2']))"


@pytest.mark.parametrize(
    ("code", "name", "status", "kept"),
    [
        (SCRIPT, "SIGTERM", -signal.SIGINT, "the next start goes on with the runs that are left"),
        (COMMAND, "SIGINT", 130, "this start has trained nothing yet"),
    ],
    ids=["script", "command"],
)
def test_a_signal_while_xla_compiles_ends_a_script_and_a_command_in_one_line(tmp_path, code, name, status, kept):
    process = script(ENDLESS + code, tmp_path / "out")
    late = threading.Timer(90, process.kill)
    late.start()
    while process.stdout.readline() not in ("waiting\n", ""):
        pass
    process.send_signal(getattr(signal, name))
    _, words = process.communicate()
    late.cancel()
    assert process.returncode == status, words
    assert "Traceback" not in words
    assert f"{name}: {kept}" in words
    assert words.endswith("atexit\n")


def test_an_interrupted_script_waits_for_its_threads_and_ends_by_the_signal():
    code = """
import atexit, sys, threading, time
from jaxsign.sweep import leaving
atexit.register(lambda: print("atexit", flush=True))
threading.Thread(target=lambda: (time.sleep(0.5), print("thread", flush=True))).start()
leaving.explain()
raise leaving.Interrupted("SIGTERM: kept")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "thread\natexit\n", "SIGTERM: kept\n")
    command = [sys.executable, "-i", "-c", code]  # an interactive Python shows the line and goes on
    done = subprocess.run(command, input="print(6 * 7)\n", capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, "42" in done.stdout, "SIGTERM: kept" in done.stderr) == (0, True, True)
    assert "Traceback" not in done.stderr


def test_a_signal_while_a_sweep_is_traced_stops_it_before_it_trains(tmp_path, capfd, monkeypatch):
    """In this process, as in a notebook: the exception is raised where the signal came, and the next call goes on."""

    def signalled(*arguments):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    for out, words in (
        (tmp_path / "out", "this start has trained nothing yet"),
        (None, "without out= nothing is kept"),
    ):
        monkeypatch.setattr(programs.Compiler, "compile", signalled)
        with pytest.raises(KeyboardInterrupt, match=f"SIGINT: .*{words}") as caught:
            js.run_sweep(sweep(trajectory=None, steps=10, record=10), out)
        assert caught.value._render_traceback_() == [str(caught.value)]
        monkeypatch.undo()
    ds = js.run_sweep(sweep(trajectory=None, steps=10, record=10), tmp_path / "out")
    assert int(ds["status"].max()) == 0


def test_a_signal_in_a_finalizer_is_heard_after_it():
    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            ends.append("finalizer")

    def work():
        with listening() as stop:
            stop.preparing = True
            Last()
            time.sleep(30)
            ends.append("went on")

    ends = []
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        work()
    assert ends == ["finalizer"]


@pytest.mark.slow
def test_the_benchmark_of_faults_tries_every_kind_and_finds_nothing_wrong(tmp_path):
    script = Path(__file__).parents[2] / "sweeps" / "bench" / "faults.py"
    command = [sys.executable, script, "--out", tmp_path, "--tries", "6", "--kills", "3"]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    kinds = ("flips", "swaps", "cuts", "copies", "losses", "edits", "links", "kills, new", "kills, sharded", "all")
    assert all(f"\n{kind}" in run.stdout for kind in kinds)
