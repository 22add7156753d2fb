"""Who may write into a results directory: stale writers stop, shards that share blocks refuse each other."""

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import test_faults as tf

import jaxsign as js
from jaxsign.store import lease, locks, results
from jaxsign.store.lease import Lease, Stale
from jaxsign.store.manifest import begun_anew, read_manifest, write_manifest
from jaxsign.sweep import blocks

LIMITS = {"lane_width": 2, "memory": 30_000}


def sweep(seeds=4, rate=1e-3, **changes):
    """Runs that take no time, in blocks of few."""
    base = {
        "steps": 200, "record": 20, "trajectory": None, "axes": {"seed": seeds},
        "optimizers": {"s": js.grid(js.sign_gd, learning_rate=[rate])},
    }  # fmt: skip
    return tf.sweep(**(base | changes))


@pytest.fixture
def at_write(monkeypatch):
    """`at_write(n, do)`: does something just before the n-th write of a status in this process."""

    def install(number, do):
        count, write = [0], results.Store.write
        entering = blocks.Work.finish

        def finish(self, *arguments):
            count[0] += 1
            if count[0] == number:
                do()
            return entering(self, *arguments)

        monkeypatch.setattr(blocks.Work, "finish", finish)
        assert results.Store.write is write

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
    with locks.manifest_lock(tmp_path):
        waiting = threading.Thread(target=lambda: locks.shard_lock(tmp_path, (1, 2)).__enter__().gone)
        waiting.start()
        tf.until(lambda: '"gone"' in file.read_text())
        assert locks.others(tmp_path, (0, 2), 1) == []
    waiting.join()
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


def test_a_fork_neither_keeps_nor_uses_its_parents_locks(tmp_path):
    code = """
import os, pathlib, sys, time
from jaxsign.store import lease, locks
path = pathlib.Path(sys.argv[1])
with locks.shard_lock(path, (0, 1)) as held:
    if os.fork() == 0:
        print("forked", flush=True)
        time.sleep(600)
    os.kill(os.getpid(), 9)
"""
    (tmp_path / "manifest.json").write_text("{}")
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                              start_new_session=True)  # fmt: skip
    try:
        assert parent.stdout.readline() == "forked\n"
        parent.wait()
        with locks.shard_lock(tmp_path, (0, 1)) as held:
            assert held.gone.endswith("is gone: going on")
    finally:
        os.killpg(parent.pid, 9)


def test_a_fork_that_ends_leaves_its_parents_lock_held(tmp_path):
    with locks.shard_lock(tmp_path, (0, 1)) as held:
        child = os.fork()
        if child == 0:
            held.release(tmp_path / "manifest.json")
            os._exit(0)
        os.waitpid(child, 0)
        assert held.lost() is None
        with pytest.raises(ValueError, match="is being run by"), locks.shard_lock(tmp_path, (0, 1)):
            raise AssertionError


def test_sweeps_in_several_threads_each_in_its_own_directory(tmp_path):
    names = [f"out{i}" for i in range(4)]
    failed = []

    def one(name):
        try:
            js.run_sweep(sweep(4, checkpoint := 1e-3, trajectory="signs"), tmp_path / name, **LIMITS,
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
        with pytest.raises(ValueError, match="out must be on a file system with locks") as caught:
            js.run_sweep(sweep(), tmp_path / "out", **LIMITS)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []


def test_a_lease_is_cheap_to_ask(tmp_path):
    js.run_sweep(sweep(), tmp_path / "out", **LIMITS)
    with locks.manifest_lock(tmp_path / "out"):
        own = Lease(tmp_path / "out", tmp_path / "out" / "results.zarr", {})
    begun = time.perf_counter()
    for _ in range(200):
        with own.writing():
            pass
    assert (time.perf_counter() - begun) / 200 < 2e-3  # tens of microseconds on a local disk
    own.close()
