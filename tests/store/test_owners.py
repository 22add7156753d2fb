"""Who may write into a results directory: stale writers stop, shards that share blocks refuse each other."""

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading

import pytest
import test_faults as tf
from kept import kept_programs

import jaxsign as js
from jaxsign.store import lease, locks
from jaxsign.store.lease import Lease, Stale
from jaxsign.store.manifest import begun_anew, read_manifest, write_manifest
from jaxsign.sweep import cluster as cluster_module
from jaxsign.sweep import execute as blocks
from jaxsign.sweep import shipping
from jaxsign.sweep.identity.definition import content_hash, definition
from jaxsign.sweep.plan import Limits
from jaxsign.sweep.worker import Joined, Session

keeping = kept_programs(tf.__name__)
LIMITS = {"lane_width": 2, "memory": 8_000}


def sweep(seeds=4, rate=1e-3, **changes):
    """Runs that take no time, in blocks of few."""
    base = {
        "steps": 200, "record": 20, "trajectory": None, "axes": {"seed": seeds},
        "optimizers": {"s": js.grid(js.sign_gd, learning_rate=[rate])},
    }  # fmt: skip
    return tf.sweep(**(base | changes))


@pytest.fixture
def at_write(monkeypatch):
    """`at_write(n, do)`: does something before the results of the n-th call are written."""

    def install(number, do):
        count, finish = [0], blocks.Work.finish

        def finishing(self, *arguments):
            count[0] += 1
            if count[0] == number:
                do()
            return finish(self, *arguments)

        monkeypatch.setattr(blocks.Work, "finish", finishing)

    return install


def files(path):
    return {
        str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.parent.name != "locks"
    }


def replaced(out, made):
    """Another process begins another sweep where one is running."""
    shutil.rmtree(out)
    thread = threading.Thread(target=js.run_sweep, args=(made, out), kwargs=LIMITS)
    thread.start()
    thread.join()


def test_a_sweep_that_was_removed_and_begun_anew_is_left_alone(tmp_path, at_write):
    out, other = tmp_path / "out", sweep(rate=3e-3)
    kept = {}

    def replace():
        replaced(out, other)
        kept.update(files(out))

    at_write(2, replace)
    with pytest.raises(
        Stale, match="was moved or removed, and begun anew, while this process ran: start it again"
    ) as e:
        js.run_sweep(sweep(8), out, **LIMITS)
    assert "\n" not in str(e.value)
    assert files(out) == kept
    assert js.run_sweep(other, out, **LIMITS).equals(js.run_sweep(other, tmp_path / "fresh", **LIMITS))


@pytest.mark.parametrize("how", ["removed", "renamed", "parent renamed", "its arrays removed", "its manifest removed"])
def test_a_directory_that_is_gone_is_not_made_again(tmp_path, at_write, how):
    out = tmp_path / "above" / "out"
    kept = {}

    def take_away():
        {
            "removed": lambda: shutil.rmtree(out), "renamed": lambda: out.rename(tmp_path / "elsewhere"),
            "parent renamed": lambda: out.parent.rename(tmp_path / "elsewhere"),
            "its arrays removed": lambda: shutil.rmtree(out / "results.zarr"),
            "its manifest removed": lambda: (out / "manifest.json").unlink(),
        }[how]()  # fmt: skip
        kept.update(files(tmp_path))

    at_write(2, take_away)
    with pytest.raises(Stale, match=r"was moved or removed while|lost its manifest.json while"):
        js.run_sweep(sweep(8), out, **LIMITS)
    assert files(tmp_path) == kept
    assert out.exists() == how.startswith("its")


def test_a_renamed_directory_goes_on_under_its_new_name(tmp_path, at_write):
    at_write(2, lambda: (tmp_path / "out").rename(tmp_path / "new"))
    with pytest.raises(Stale):
        js.run_sweep(sweep(8), tmp_path / "out", **LIMITS)
    ds = js.run_sweep(sweep(8), tmp_path / "new", **LIMITS)
    assert ds.equals(js.run_sweep(sweep(8), tmp_path / "fresh", **LIMITS))


def test_a_writer_of_an_older_epoch_stops_and_counts_nothing(tmp_path, at_write):
    out, before = tmp_path / "out", {}

    def extend():
        stored = read_manifest(out)
        write_manifest(out, {**stored, **begun_anew(stored)})
        before.update(files(out))

    at_write(2, extend)
    with pytest.raises(Stale, match="was extended or defined anew while this process ran"):
        js.run_sweep(sweep(8), out, **LIMITS)
    assert files(out) == before


def test_a_lock_that_was_taken_over_or_deleted_stops_its_holder(tmp_path, at_write):
    file = tmp_path / "out" / "locks" / "shard-0-of-1.lock"
    at_write(1, lambda: file.write_text(json.dumps({"pid": 7, "host": "far", "since": "now", "epoch": 1})))
    with pytest.raises(Stale, match="was taken over by process 7 on far since now while this process ran"):
        js.run_sweep(sweep(), tmp_path / "out", **LIMITS)
    assert "far" in file.read_text()  # another's lock is not emptied
    file.unlink()
    assert (js.run_sweep(sweep(), tmp_path / "out", **LIMITS)["status"] == 0).all()


def test_mended_arrays_leave_the_writers_of_the_same_layout_alone(tmp_path):
    out = tmp_path / "out"
    js.run_sweep(sweep(), out, shard=(0, 2), **LIMITS)
    epoch = read_manifest(out)["epoch"]
    (out / "results.zarr" / "train_loss" / "zarr.json").unlink()
    js.run_sweep(sweep(), out, shard=(1, 2), **LIMITS)
    assert read_manifest(out)["epoch"] == epoch
    js.run_sweep(sweep(6), out, **LIMITS)
    assert read_manifest(out)["epoch"] == epoch + 1


SHARDS = [((0, 1), (0, 2)), ((1, 2), (0, 1)), ((0, 2), (2, 4)), ((1, 4), (3, 6)), ((0, 3), (1, 2))]
APART = [((0, 2), (1, 4)), ((0, 4), (3, 4)), ((1, 4), (0, 6)), ((2, 3), (1, 6))]


@pytest.mark.parametrize(("one", "other"), SHARDS)
def test_shards_with_blocks_in_common_refuse_each_other(tmp_path, one, other):
    assert set(range(*one[:1], 60, one[1])) & set(range(*other[:1], 60, other[1]))
    with locks.shard_lock(tmp_path, one):
        words = f"shard {other[0]}/{other[1]} of .* has blocks in common with shard {one[0]}/{one[1]}, run by process"
        with pytest.raises(ValueError, match=f"{words} {os.getpid()} on ") as caught, locks.shard_lock(tmp_path, other):
            raise AssertionError
        assert "\n" not in str(caught.value)
        assert [f.name for f in (tmp_path / "locks").glob("shard*")] == [f"shard-{one[0]}-of-{one[1]}.lock"]
    with locks.shard_lock(tmp_path, other) as held:
        assert held.gone is None


@pytest.mark.parametrize(("one", "other"), APART)
def test_shards_without_common_blocks_run_together(tmp_path, one, other):
    assert not set(range(*one[:1], 60, one[1])) & set(range(*other[:1], 60, other[1]))
    with locks.shard_lock(tmp_path, one), locks.shard_lock(tmp_path, other):
        assert len(locks.others(tmp_path, one)) == 1


def test_of_shards_that_start_at_once_exactly_one_goes_on(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    for _ in range(10):
        outcome, ready, held = [], threading.Barrier(6), threading.Event()

        def begin(shard, outcome=outcome, ready=ready, held=held):
            ready.wait()
            try:
                with locks.shard_lock(tmp_path, shard):
                    outcome.append("held")
                    held.wait()
            except ValueError:
                outcome.append("refused")

        threads = [threading.Thread(target=begin, args=((0, n),)) for n in range(1, 7)]
        for thread in threads:
            thread.start()
        tf.until(lambda outcome=outcome: len(outcome) == 6)
        held.set()
        for thread in threads:
            thread.join()
        assert sorted(outcome) == ["held"] + ["refused"] * 5


def test_a_job_array_that_is_started_again_with_more_seeds_completes_the_grid(tmp_path, monkeypatch):
    out = tmp_path / "out"
    for i in range(4):
        js.run_sweep(sweep(8), out, shard=(i, 4), **LIMITS)
        # As a killed task leaves it.
        left = {"pid": 1, "host": socket.gethostname(), "since": "now", "token": "0", "epoch": 1}
        (out / "locks" / f"shard-{i}-of-4.lock").write_text(json.dumps(left))
    ready, inside, failed = threading.Barrier(4), locks.shard_lock, []

    @contextlib.contextmanager
    def together(path, shard):
        with inside(path, shard) as held:
            ready.wait()  # all have their lock before one looks at the manifest
            yield held
            ready.wait()

    monkeypatch.setattr(locks, "shard_lock", together)

    def task(i):
        try:
            js.run_sweep(sweep(12), out, shard=(i, 4), **LIMITS)
        except BaseException as error:
            failed.append(error)
            ready.abort()

    threads = [threading.Thread(target=task, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    monkeypatch.undo()
    assert js.run_sweep(sweep(12), out).equals(js.run_sweep(sweep(12), tmp_path / "fresh", **LIMITS))


def test_a_dead_tasks_lock_is_no_reason_to_refuse_while_its_next_start_waits(tmp_path):
    file = tmp_path / "locks" / "shard-1-of-2.lock"
    file.parent.mkdir()
    file.write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "since": "then", "epoch": 1}))
    stack = contextlib.ExitStack()
    with locks.manifest_lock(tmp_path):
        waiting = threading.Thread(target=stack.enter_context, args=(locks.shard_lock(tmp_path, (1, 2)),))
        waiting.start()
        tf.until(lambda: '"gone"' in file.read_text())
        assert locks.others(tmp_path, (0, 2), 1) == []
    waiting.join()
    with stack:
        assert len(locks.others(tmp_path, (0, 2))) == 1
        assert locks.others(tmp_path, (0, 2), 1) == []  # it has not said yet by which epoch it works


def test_dead_holders_on_other_hosts_are_waited_for_once_and_together(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.3)
    js.run_sweep(sweep(2), tmp_path / "out", **LIMITS)
    for i in range(5):
        left = {"pid": 1, "host": f"node{i}", "since": "2026-01-01T00:00:00Z"}
        (tmp_path / "out" / "locks" / f"shard-{i}-of-16.lock").write_text(json.dumps(left))
    capfd.readouterr()
    js.run_sweep(sweep(3), tmp_path / "out", **LIMITS)
    assert capfd.readouterr().err.count("watching 5 locks of other hosts for up to 1 s\n") == 1
    js.run_sweep(sweep(4), tmp_path / "out", **LIMITS)
    assert "watching" not in capfd.readouterr().err


def test_waiting_for_the_manifest_is_said(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    js.run_sweep(sweep(2), tmp_path / "out", **LIMITS)
    with locks.manifest_lock(tmp_path / "out"):
        second = threading.Thread(target=js.run_sweep, args=(sweep(3), tmp_path / "out"), kwargs=LIMITS)
        second.start()
        tf.until(lambda: "waiting for manifest.json, which another process is making" in capfd.readouterr().err)
    second.join()
    assert js.open_results(tmp_path / "out").sizes["seed"] == 3


#: A process with a lock that forks; its fork stays.
FORKING = """
import os, pathlib, sys, time
from jaxsign.store import locks
path = pathlib.Path(sys.argv[1])
with locks.shard_lock(path, (0, 1)) as held:
    child = os.fork()
    if child == 0:
        held.release(path / "manifest.json")  # as on a fork's way out
        print("forked", flush=True)
        time.sleep(600)
    sys.stdin.readline()
    os.kill(os.getpid(), 9)
"""


def test_a_fork_neither_keeps_nor_gives_away_its_parents_lock(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKING, tmp_path], **pipes, start_new_session=True) as parent:
        try:
            assert parent.stdout.readline() == "forked\n"
            words = f"is being run by process {parent.pid}"
            with pytest.raises(ValueError, match=words), locks.shard_lock(tmp_path, (0, 1)):
                raise AssertionError
            parent.stdin.write("\n")
            parent.stdin.flush()
            parent.wait()
            with locks.shard_lock(tmp_path, (0, 1)) as held:
                assert held.gone.endswith("is gone: going on")
        finally:
            os.killpg(parent.pid, 9)


#: A script that defines its own task, and asks for what its first argument says.
SCRIPT = """
import functools, sys
import jax, jax.numpy as jnp
import jaxsign as js

{cache}
def system(problem):
    return TASK

loss = lambda p, x, h: jnp.mean((x @ p["w"]) ** 2)
TASK = js.Task(
    sample=lambda key, h, s: jax.random.normal(key, (4, 3)), init=lambda key, x, h: {{"w": x[0]}}, loss=loss,
    observe=lambda p, x, t, h: {{"train_loss": loss(p, x, h)}}, name="t")

def build(args):
    made = js.Sweep(system=system, problem=None, hyper=None, axes={{"seed": args.seeds or 4}}, steps=args.steps or 20,
                    optimizers={{"s": js.sign_gd(1e-3)}})
    return {{"s": made}}

if __name__ == "__main__":
    {act}
"""
CACHES = pytest.mark.parametrize("cache", ["@functools.cache", "@functools.lru_cache(maxsize=3)", ""])
IDENTITY = """
from jaxsign.sweep.identity.definition import content_hash, definition
from jaxsign.sweep.identity.match import fingerprints
print(content_hash(definition(made)), fingerprints(made, definition(made)))
"""


def ran(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@CACHES
def test_a_script_s_own_task_is_the_same_one_on_a_machine_without_the_script(tmp_path, cache):
    act = "\n    ".join([
        "import pathlib", "from jaxsign.sweep.shipping import packed", "from argparse import Namespace",
        "made = build(Namespace(seeds=2, steps=5))['s']", "pathlib.Path(sys.argv[1]).write_bytes(packed(made))",
        *IDENTITY.strip().splitlines(),
    ])  # fmt: skip
    script, sent = tmp_path / "mine.py", tmp_path / "sent"
    script.write_text(SCRIPT.format(cache=cache, act=act))
    here = ran(script, sent)
    script.unlink()
    code = "import pathlib, sys\nfrom jaxsign.sweep.shipping import unpacked\n"
    there = ran("-c", code + "made = unpacked(pathlib.Path(sys.argv[1]).read_bytes())\n" + IDENTITY, sent)
    assert there == here
    assert "'programs': {}" not in here


class Cluster:
    """A Dask scheduler and a worker on this machine."""

    def __init__(self, folder, workers=1):
        self.folder, self.file = folder, folder / "scheduler.json"
        self.how = {
            "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, "cwd": folder,
            "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL,
        }  # fmt: skip
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file)]
        self.scheduler = subprocess.Popen([sys.executable, "-m", "dask", "scheduler", *options], **self.how)
        tf.until(lambda: self.file.exists() and self.file.read_text().endswith("}"))
        self.address = json.loads(self.file.read_text())["address"]
        self.workers = [self.worker(i) for i in range(workers)]

    def worker(self, number):
        options = ["--scheduler-file", str(self.file), "--no-nanny", "--nthreads", "1", "--no-dashboard"]
        local = ["--local-directory", str(self.folder / f"w{number}")]
        return subprocess.Popen([sys.executable, "-m", "dask", "worker", *options, *local], **self.how)

    def end(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    pytest.importorskip("distributed")
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.end()


def script(tmp_path, *arguments):
    (tmp_path / "mine.py").write_text(
        SCRIPT.format(cache="@functools.cache", act="raise SystemExit(js.sweep_cli(build)())")
    )
    command = [sys.executable, tmp_path / "mine.py", "--out", tmp_path / "out", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)


def test_a_script_s_own_task_runs_on_workers(tmp_path, dask):
    with script(tmp_path, "--scheduler", dask.address) as driver:
        assert "Traceback" not in driver.communicate()[1]
    assert driver.returncode == 0
    assert (js.open_results(tmp_path / "out")["status"] == 0).all()


def test_a_worker_opens_a_directory_again_that_was_begun_anew(tmp_path, dask):
    out, made = tmp_path / "out", sweep(8, steps=400)
    for limits in ({"memory": 60_000}, {"memory": 8_000}, {}):
        ds = js.run_sweep(made, out, scheduler=dask.address, lane_width=2, **limits).load()
        assert (ds["status"] == 0).all()
        shutil.rmtree(out)
    for seeds in (2, 5):  # extended: the worker knows the layout before
        ds = js.run_sweep(sweep(seeds), out, scheduler=dask.address, **LIMITS)
        assert ds.equals(js.run_sweep(sweep(seeds), tmp_path / f"fresh{seeds}", **LIMITS))
    assert not list((out / "locks").glob("piece-*"))


def test_a_scheduler_that_dies_is_one_line(tmp_path):
    pytest.importorskip("distributed")
    cluster = Cluster(tmp_path)
    try:
        arguments = ["--scheduler", cluster.address, "--steps", 10**8, "--checkpoint-every", 0.5]
        with script(tmp_path, *arguments) as driver:
            tf.until(lambda: list(tmp_path.glob("out/checkpoints/*/*.json")), driver)
            cluster.scheduler.kill()
            words = driver.communicate(timeout=60)[1]
        assert driver.returncode == 2
        assert "Traceback" not in words
        assert "was lost, or has dropped this sweep's blocks; what is finished is kept" in words.splitlines()[-1]
    finally:
        cluster.end()


def test_waiting_for_workers_is_said_and_has_an_end_also_when_all_have_gone(tmp_path):
    pytest.importorskip("distributed")
    cluster = Cluster(tmp_path, workers=0)
    waiting = "waiting for workers (0 so far) of the scheduler at tcp://"
    try:
        with script(tmp_path, "--scheduler", cluster.address, "--wait-for-workers", 2) as driver:
            words = driver.communicate(timeout=60)[1]
        assert (driver.returncode, waiting in words, "Traceback" in words) == (2, True, False)
        assert "for 2 s (wait_for_workers=2): start some with `dask worker tcp://" in words.splitlines()[-1]
        cluster.workers.append(cluster.worker(0))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        arguments = ["--scheduler", cluster.address, "--steps", 10**8, "--checkpoint-every", 0.5]
        with script(tmp_path, *arguments, "--wait-for-workers", 30, "--seeds", 5) as driver:
            tf.until(lambda: list(tmp_path.glob("out/checkpoints/*/*.json")), driver)
            cluster.workers[0].kill()
            tf.until(lambda: driver.stderr.readline().startswith(waiting), driver)
            driver.kill()
    finally:
        cluster.end()


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"])
def test_a_wrong_port_is_one_line_soon_and_leaves_nothing(tmp_path, monkeypatch, answer):
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster_module, "TIMEOUT", 1)
    kept = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    kept.append(server.accept()[0])
                    if answer:
                        kept[-1].recv(100)
                        kept[-1].sendall(answer)

        thread = threading.Thread(target=serve)
        if answer is not None:
            thread.start()
        before = logging.getLogger("distributed").level
        with pytest.raises(ValueError, match=r"^scheduler must be the address of a running Dask scheduler, got") as e:
            js.run_sweep(sweep(), tmp_path / "out", scheduler=f"tcp://127.0.0.1:{server.getsockname()[1]}")
        assert "\n" not in str(e.value)
        assert logging.getLogger("distributed").level == before
        assert list(tmp_path.iterdir()) == []
        server.shutdown(socket.SHUT_RDWR)
    if answer is not None:
        thread.join()
    for connection in kept:
        connection.close()


@pytest.fixture
def ordered(tmp_path):
    """A context in which this process is the driver of a sweep, with the orders that it gives."""

    @contextlib.contextmanager
    def begin(made):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        with locks.shard_lock(out, (0, 1)) as held:
            session = Session(made, out, (0, 1), held, Limits(**LIMITS))
            joined = Joined(session.lease.id, session.lease.epoch, held.file.name, held.text)
            order = cluster_module.Order(
                shipping.packed(made), content_hash(definition(made)), str(out), joined, session.plan.limits, False,
                "", {},
            )  # fmt: skip
            try:
                yield [order._replace(missing=piece) for piece in session.pieces(session.missing())]
            finally:
                session.close(0.0)

    yield begin
    for session in cluster_module._OPEN.values():
        session.release()
    cluster_module._OPEN.clear()


def test_a_worker_writes_only_as_long_as_its_driver_holds_the_lock(tmp_path, ordered, at_write):
    pytest.importorskip("distributed")
    made, out = sweep(16), tmp_path / "out"
    with ordered(made) as (first, *rest):
        assert cluster_module.work(first)[0] > 0
    with pytest.raises(Stale, match=r"was given up by the holder of shard-0-of-1\.lock"):
        cluster_module.work(rest[0])
    with ordered(made) as orders:  # the same directory, another driver
        assert len(orders) == len(rest)
        with pytest.raises(Stale, match="was taken over by process"):
            cluster_module.work(rest[0])
        cluster_module.work(orders[0])
    # A driver that was killed: its lock is the next one's to take, also under another shard's name.
    with contextlib.ExitStack() as stack:
        order = stack.enter_context(ordered(made))[0]
        lock = out / "locks" / "shard-0-of-1.lock"
        kept = lock.read_text()
        stack.close()
        lock.write_text(kept)
        cluster_module.work(order)
        with locks.shard_lock(out, (1, 2)), pytest.raises(Stale, match="was taken for dead"):
            cluster_module.work(order)


def test_a_worker_that_was_given_up_stops_where_another_one_has_begun_its_piece(tmp_path, ordered, at_write):
    pytest.importorskip("distributed")
    with ordered(sweep(8)) as (order, *_):
        (piece,) = [tmp_path / "out" / "locks" / f"piece-{order.piece()}.lock"]
        at_write(1, lambda: locks.take_over(piece))
        with pytest.raises(Stale, match=f"was taken over by process {os.getpid()} on"):
            cluster_module.work(order)
        assert (js.open_results(tmp_path / "out")["status"] < 0).all()
        cluster_module.work(order)
        assert (js.open_results(tmp_path / "out")["status"] == 0).any()


def test_a_worker_that_sees_another_directory_makes_nothing_of_it(tmp_path, ordered):
    pytest.importorskip("distributed")
    (tmp_path / "elsewhere").mkdir()
    with ordered(sweep()) as (order, *_):
        with pytest.raises(Stale, match="workers must see the same file system") as caught:
            cluster_module.work(order._replace(path=str(tmp_path / "elsewhere")))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "elsewhere" / "manifest.json").exists()


def test_sweeps_in_several_threads_each_in_its_own_directory(tmp_path):
    names = [f"out{i}" for i in range(4)]
    failed = []

    def one(name):
        try:
            js.run_sweep(sweep(4, trajectory="signs"), tmp_path / name, **LIMITS,
                         checkpoint_every=0.01)  # fmt: skip
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    first, *rest = (tf.values(tmp_path / name, sweep(4, trajectory="signs")) for name in names)
    assert all(found == first for found in rest)


def test_a_file_system_without_locks_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    for number in ("ENOLCK", "ENOSYS", "EOPNOTSUPP"):

        def refuse(handle, kind, number=number):
            raise OSError(getattr(__import__("errno"), number), "no locks here")

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
        with pytest.raises(ValueError, match="is on a file system without file locks") as caught:
            js.run_sweep(sweep(), tmp_path / "out", **LIMITS)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []


def test_a_lease_reads_the_manifest_only_after_a_change(tmp_path, monkeypatch):
    js.run_sweep(sweep(), tmp_path / "out", **LIMITS)
    with locks.manifest_lock(tmp_path / "out"):
        own = Lease(tmp_path / "out", tmp_path / "out" / "results.zarr", {})
    reads = []
    monkeypatch.setattr(lease, "read_manifest", lambda path: reads.append(path) or read_manifest(path))
    for _ in range(3):
        with own.writing():
            pass
    assert reads == []
    write_manifest(tmp_path / "out", {**read_manifest(tmp_path / "out"), "wall_seconds": 1.0})
    for _ in range(3):
        with own.writing():
            pass
    assert len(reads) == 1
    own.close()
