"""Locks: one process a shard; the dead are found out, the living are named."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import jaxsign as js
from jaxsign.store import locks

#: Holds a shard until it is killed, and says when it does.
CHILD = """
import pathlib, sys, time
from jaxsign.store import locks
with locks.shard_lock(pathlib.Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path):
    """`hold(shard)` -> a process that holds the shard."""
    started = []

    def begin(shard):
        arguments = [sys.executable, "-c", CHILD, str(tmp_path), *map(str, shard)]
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout.readline() == "held\n"
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate()


def file_of(path, shard):
    return path / "locks" / f"shard-{shard[0]}-of-{shard[1]}.lock"


def left_by(path, shard, host, pid=123):
    """A lock that says it is held by a process of some host."""
    file = file_of(path, shard)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"pid": pid, "host": host, "since": "2026-01-01T00:00:00Z"}))
    return file


class Heart:
    """Touches a lock every so often, as a holder on another machine does."""

    def __init__(self, file, every):
        self.file, self.every, self.done = file, every, threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self._beat)
        self.thread.start()

    def __exit__(self, *reason):
        self.done.set()
        self.thread.join()

    def _beat(self):
        while not self.done.wait(self.every):
            os.utime(self.file)


def test_a_shard_is_held_by_one_and_free_again_after(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")  # without one, the locks of a refused start go again
    for _ in range(2):
        with locks.shard_lock(tmp_path, (0, 1)) as held:
            assert held.gone is None
            holder = json.loads(file_of(tmp_path, (0, 1)).read_text())
            assert holder.items() >= {"pid": os.getpid(), "host": socket.gethostname()}.items()
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", holder["since"])
        assert file_of(tmp_path, (0, 1)).read_text() == ""


def test_the_same_shard_twice_in_one_process_is_refused_with_pid_and_host(tmp_path):
    with locks.shard_lock(tmp_path, (1, 2)):
        before = file_of(tmp_path, (1, 2)).read_text()
        with pytest.raises(ValueError, match="is being run by") as caught, locks.shard_lock(tmp_path, (1, 2)):
            raise AssertionError
        words = f"shard 1/2 of {str(tmp_path)!r} is being run by process {os.getpid()} on {socket.gethostname()} since"
        assert words in str(caught.value)
        assert file_of(tmp_path, (1, 2)).read_text() == before
        with locks.shard_lock(tmp_path, (0, 2)) as held:  # another shard is free
            assert held.gone is None


def test_a_shard_of_another_process_is_refused_with_pid_and_host(tmp_path, hold):
    child = hold((0, 1))
    with pytest.raises(ValueError, match="is being run by") as caught, locks.shard_lock(tmp_path, (0, 1)):
        raise AssertionError
    assert f"process {child.pid} on {socket.gethostname()} since" in str(caught.value)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with locks.shard_lock(tmp_path, (0, 1)):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_and_explained(tmp_path, hold):
    child = hold((2, 3))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert json.loads(file_of(tmp_path, (2, 3)).read_text())["pid"] == child.pid  # it could not clean up
    before = time.monotonic()
    with locks.shard_lock(tmp_path, (2, 3)) as held:
        assert time.monotonic() - before < 5  # on this host the kernel knows: nobody waits for a heartbeat
        holder = rf"process {child.pid} on {re.escape(socket.gethostname())} since \S+"
        assert re.fullmatch(f"{holder}, which held shard 2/3, is gone: going on", held.gone)
        assert json.loads(file_of(tmp_path, (2, 3)).read_text())["pid"] == os.getpid()
    with locks.shard_lock(tmp_path, (2, 3)) as held:
        assert held.gone is None


def test_a_lock_of_another_host_that_is_touched_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.2)
    file = left_by(tmp_path, (0, 1), "elsewhere", pid=77)
    before = file.read_text()
    with Heart(file, 0.2):
        with pytest.raises(ValueError, match="is being run by process 77 on elsewhere since 2026") as caught:
            locks.shard_lock(tmp_path, (0, 1)).__enter__()
        assert str(file) in str(caught.value)  # what to delete if it is surely gone
    assert file.read_text() == before
    file.unlink()
    with locks.shard_lock(tmp_path, (0, 1)) as held:
        assert held.gone is None


def test_a_lock_of_another_host_that_is_not_touched_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.1)
    left_by(tmp_path, (0, 1), "elsewhere", pid=77)
    begun = time.monotonic()
    with locks.shard_lock(tmp_path, (0, 1)) as held:
        assert time.monotonic() - begun >= 3 * 0.1
        words = "process 77 on elsewhere since 2026-01-01T00:00:00Z, which held shard 0/1, is gone: going on"
        assert held.gone == words


def test_a_holder_touches_its_lock_as_long_as_it_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.05)
    (tmp_path / "manifest.json").write_text("{}")
    file = file_of(tmp_path, (0, 1))
    with locks.shard_lock(tmp_path, (0, 1)):
        seen = set()
        end = time.monotonic() + 10
        while len(seen) < 4 and time.monotonic() < end:
            seen.add(file.stat().st_mtime_ns)
            time.sleep(0.01)
        assert len(seen) == 4
    last = file.stat().st_mtime_ns
    time.sleep(0.3)
    assert file.stat().st_mtime_ns == last


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"pid": 3'])
def test_a_half_written_lock_is_nobodys(tmp_path, text):
    left_by(tmp_path, (0, 1), "elsewhere").write_text(text)
    with locks.shard_lock(tmp_path, (0, 1)) as held:
        assert held.gone is None
    assert locks.others(tmp_path, (0, 2)) == []


def test_a_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), locks.shard_lock(tmp_path, (0, 1)):
        raise RuntimeError("stop")
    with locks.shard_lock(tmp_path, (0, 1)) as held:
        assert held.gone is None


def test_others_are_the_living_holders_of_other_shards(tmp_path, hold, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.1)
    assert locks.others(tmp_path, (0, 1)) == []
    living, dead = hold((1, 4)), hold((2, 4))
    dead.kill()
    dead.wait()
    left_by(tmp_path, (3, 4), "far", pid=5)  # not touched
    far = left_by(tmp_path, (3, 8), "away", pid=6)
    host = socket.gethostname()
    with locks.shard_lock(tmp_path, (0, 4)), Heart(far, 0.1):
        assert len(locks.others(tmp_path, (0, 4))) == 3  # nobody has waited yet for those of other machines
        locks.watch(tmp_path)
        assert len(locks.others(tmp_path, (0, 4))) == 3  # one is touched: it is in vain to wait for the rest
    locks.watch(tmp_path)
    with locks.shard_lock(tmp_path, (0, 4)):
        far.write_text(far.read_text().replace(', "gone": true', ""))
        mine, away = locks.others(tmp_path, (0, 4))
        assert mine.startswith(f"shard-1-of-4: process {living.pid} on {host} since ")
        assert away == "shard-3-of-8: process 6 on away since 2026-01-01T00:00:00Z"
        seen = locks.others(tmp_path, (7, 9))
        assert [line.split(":")[0] for line in seen] == ["shard-0-of-4", "shard-1-of-4", "shard-3-of-8"]
        assert f"process {os.getpid()} on {host}" in seen[0]
    # looking takes nobody's lock away
    with pytest.raises(ValueError, match=f"process {living.pid}"), locks.shard_lock(tmp_path, (1, 4)):
        raise AssertionError
    assert [line.split(":")[0] for line in locks.others(tmp_path, (0, 4))] == ["shard-1-of-4", "shard-3-of-8"]


def test_the_manifest_lock_waits_for_its_holder(tmp_path):
    order, inside = [], threading.Event()

    def second():
        inside.wait()
        with locks.manifest_lock(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locks.manifest_lock(tmp_path):
        inside.set()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_sweep_whose_shard_is_held_is_refused_and_nothing_is_written(tmp_path, hold):
    from test_results import small

    child = hold((0, 1))
    for _ in range(2):  # the holder's lock outlives the refusal
        with pytest.raises(ValueError, match=f"shard 0/1 of .* is being run by process {child.pid} on"):
            js.run_sweep(small(), out=tmp_path)
        assert [f.name for f in tmp_path.iterdir()] == ["locks"]
    child.kill()
    child.wait()
    assert js.run_sweep(small(), out=tmp_path)["train_loss"].notnull().all()


def test_a_sweep_says_that_a_killed_process_held_its_shard(tmp_path, hold, capsys):
    from test_results import small

    child = hold((0, 1))
    child.kill()
    child.wait()
    js.run_sweep(small(), out=tmp_path)
    assert f"process {child.pid} on {socket.gethostname()} since" in capsys.readouterr().err
