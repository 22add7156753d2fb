"""What a sweep shows while it runs, on a clock that the test turns; signals that stop it, and those that do not."""

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
import test_groups as tp

import jaxsign as js
from jaxsign.sweep import execute, leaving, progress
from jaxsign.sweep.compile_log import CompileLog
from jaxsign.sweep.progress import Progress, listening
from jaxsign.validation.messages import say


class Clock:
    """A clock that stands still unless it is turned."""

    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shown(clock, monkeypatch):
    """The display of 8 runs of 100 steps; nothing but the test draws it."""
    monkeypatch.setattr(progress, "FIRST_LINE", 0.3)
    return Progress(8, 100, now=clock)


def test_words_follow_a_sweep_from_its_plan_to_its_end(clock, shown):
    clock.time += 3
    assert shown.words() == ("planning", "8 runs of 100 steps, 3 s")
    with shown.log.measuring("measuring lane widths"), shown.log.working("wide", "adam"):
        clock.time += 1
        assert shown.words() == ("measuring lane widths", "8 runs of 100 steps, 4 s")
    shown.log.expect(["p of another width"])
    shown.log.expect(["p", "q"])  # in its place
    with shown.log.working("p", "adam"):
        shown.log.submitted("p")
        clock.time += 1
        assert shown.words() == ("tracing adam", "0 of 2 programs ready, 2 s")
    shown.log.expect(["q", "p"])  # once more: they are counted once
    with shown.log.working("q", "gd"):
        clock.time += 1
    with shown.compiling():
        with shown.log.working("p", "adam", submitted=True):
            clock.time += 2
            assert shown.words() == ("compiling", "1 of 2 programs ready, 5 s")
        assert shown.words() == ("compiling", "2 of 2 programs ready, 5 s")
    shown.training("adam")
    assert shown.words() == ("adam, step 0 of 100", "0 of 8 runs, 8 s so far")
    clock.time += 5
    shown.trained(4, 10, 10)  # the first call draws the data, and is left out of the speed
    assert shown.words() == ("adam, step 10 of 100", "0 of 8 runs, 13 s so far")
    clock.time += 2
    shown.trained(4, 50, 60)
    assert shown.words() == ("adam, step 60 of 100", "0 of 8 runs, 6 s left, 100 seed-steps/s, 15 s so far")
    clock.time += 2
    shown.trained(4, 40, 100)
    shown.finished(4, 1)
    assert shown.words()[1].startswith("4 of 8 runs, 1 diverged, 4 s left, 90 seed-steps/s")
    with shown.compiling():  # waiting is no training
        clock.time += 1000
    shown.training("gd")
    assert shown.words() == ("gd, step 0 of 100", "4 of 8 runs, 1 diverged, 4 s left, 90 seed-steps/s, 16.9 min so far")


def test_steps_of_an_earlier_process_count_as_done_but_not_for_the_speed(clock, shown):
    shown.training("adam")
    shown.trained(8, 60, 60, before=True)
    for step in (80, 100):
        clock.time += 8
        shown.trained(8, 20, step)
    assert shown.rate == 20
    assert shown.seed_steps == 800
    assert shown.trained_steps == 320


def test_a_log_gets_whole_lines_soon_and_then_ever_more_seldom(clock, shown, capfd):
    times = []
    for _ in range(3000):  # ten minutes
        shown.tick()
        if capfd.readouterr().err:
            times.append(round(clock.time - 1000, 1))
        clock.time += 0.2
    assert times[:6] == [0.4, 5.4, 10.8, 21.6, 43.2, 86.4]
    assert {round(b - a) for a, b in itertools.pairwise(times[6:])} == {60}
    shown.due = 0
    shown.tick()
    assert capfd.readouterr().err == "planning: 8 runs of 100 steps, 10.0 min\n"


def test_the_last_line_is_about_what_this_process_did(clock, shown, capfd):
    shown.log.expect(["p"])
    with shown.log.working("p", "adam"):
        clock.time += 5
    shown.training("adam")
    clock.time += 4
    shown.trained(8, 100, 100)
    shown.finished(8, 3)
    with pytest.raises(RuntimeError), shown:
        raise RuntimeError
    assert capfd.readouterr() == ("", "")  # an error speaks for itself
    shown.__exit__(None, None, None)
    words = "8 of 8 runs, 3 diverged in 9.0 s: compiling 1 program 5.0 s, training 4.0 s, 200 seed-steps/s\n"
    assert capfd.readouterr() == ("", words)
    shown.trained_steps = 0  # loaded
    shown.__exit__(None, None, None)
    assert capfd.readouterr() == ("", "")


def test_a_quiet_display_counts_only(clock, capfd, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    with Progress(8, 100, quiet=True, now=clock) as counts:
        counts.trained(8, 100, 100)
        counts.finished(8, 2)
        assert not counts.thread.is_alive()
    assert (counts.runs, counts.diverged) == (8, 2)
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    """Standard error as a terminal; `read` gives what was written since the last time."""

    def isatty(self):
        return True

    def read(self):
        written = self.getvalue()
        self.seek(0)
        self.truncate()
        return written


def test_a_terminal_shows_a_bar_that_makes_room_for_messages_and_is_gone_at_the_end(clock, shown, monkeypatch):
    monkeypatch.setattr(progress, "TICK", 1e6)  # its thread sleeps
    monkeypatch.setattr(sys, "stderr", Terminal())
    read = sys.stderr.read
    with shown:
        assert re.fullmatch(r"\rplanning:   0%\| +\| 8 runs of 100 steps, 0 s", read())
        shown.training("adam {x}")
        for step in (20, 50):
            clock.time += 3
            shown.trained(8, step - (shown.step or 0), step)
        shown.tick()
        assert re.fullmatch(
            r"\radam {x}, step 50 of 100:  50%\|[#█]+ +\| 0 of 8 runs, 5 s left, 80 seed-steps/s, 6 s so far *", read()
        )
        shown.tick()
        assert read() == ""  # nothing has changed
        say("a message")
        assert re.fullmatch(r"\r +\ra message\n\radam {x}, step 50 .*", read())
    _, blank, last = read().split("\r")
    assert not blank.strip()
    assert last == "0 of 8 runs in 6.0 s: compiling 0 programs < 0.1 s, training 6.0 s, 66.7 seed-steps/s\n"


def test_a_notebook_without_widgets_shows_a_bar_of_text_and_no_warning(shown, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("tqdm.auto", "tqdm.notebook", "ipywidgets"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # not installed
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", types.ModuleType("ipykernel.zmqshell"))
    shell = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # as a kernel's: no terminal
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with shown:
            assert sys.stderr.getvalue().startswith("\rplanning:   0%|")


def test_compiling_side_by_side_is_wall_time_once_and_each_family_s_own(clock):
    log = CompileLog(clock)
    with log.working("p", "adam"):
        clock.time += 1
        with log.working("q", "gd"):
            clock.time += 2
            assert log.seconds == 3
    clock.time += 100
    with log.working("r", "gd"):
        clock.time += 4
    assert log.seconds == 7
    assert log.by_family() == {"adam": 3, "gd": 6}


def test_first_calls_are_short_and_grow_with_the_measured_speed(clock, monkeypatch):
    monkeypatch.setattr(execute.time, "monotonic", clock)
    pace, allowed = execute.Pace(), []
    for _ in range(4):  # a step takes a millisecond or so
        allowed.append(pace.allowed(0))
        clock.time += allowed[-1] / 1024
        pace.fetched(0, allowed[-1], clock.time - allowed[-1] / 1024)
    assert allowed == [2, 16, 128, 1024]
    assert pace.allowed(0) == 1024 * execute.CALL_SECONDS == 1280  # two of them are over within three seconds
    slow = execute.Pace()
    slow.fetched(0, 2, clock.time - 60)  # half a minute a step
    assert slow.allowed(0) == 1


def runs(**fields):
    return tp.sweep(axes={"seed": 4}, **fields)


def test_a_sweep_shows_lines_on_stderr_and_keeps_what_compiling_took(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    js.run_sweep(runs(), tmp_path / "out")
    out, err = capfd.readouterr()
    assert out == ""
    assert "\r" not in err
    assert re.fullmatch(r"4 of 4 runs in .*: compiling \d programs? .*, training .* seed-steps/s", err.splitlines()[-1])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (session,) = manifest["sessions"]
    assert 0 < session["compile_seconds"] == manifest["compile_seconds"] <= session["seconds"]
    assert session["compiled"]["programs"] == len(manifest["plan"]["groups"])
    assert set(session["compiled"]["families"]) == {group["family"] for group in manifest["plan"]["groups"]}
    in_memory = json.loads(js.run_sweep(runs(), progress=False).attrs["manifest"])
    assert 0 < in_memory["compile_seconds"] <= in_memory["wall_seconds"]
    out, err = capfd.readouterr()
    assert (out, [line for line in err.splitlines() if "are the same run" not in line]) == ("", [])
    with pytest.raises(ValueError, match="progress must be True or False, got progress='bar'"):
        js.run_sweep(runs(), progress="bar")


def test_a_quiet_script_shows_no_progress(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    main = js.sweep_cli(lambda args: {"x": runs()})
    for name, words in (("loud", ["of 4 runs"]), ("quiet", [])):
        assert main(["--out", str(tmp_path / name), *["--quiet"] * (not words)]) == 0
        out, err = capfd.readouterr()
        assert out == f"x: 4 runs of {runs().schedule.steps} steps -> {tmp_path / name}\n"
        assert re.findall(r"of 4 runs(?= in )", err) == words


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_warnings_ask_for_a_stop_however_often_they_come_and_leave_other_handlers_alone(name, capfd):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with listening() as stop:
            for _ in range(3):
                os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)  # the batch system's next word: no reason to stop at once
            assert stop.signal == name
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err.count(f"{name}: finishing the steps under way, then saving\n") == 1
        assert signal.getsignal(number) == signal.SIG_DFL

        with listening(kept=False):
            os.kill(os.getpid(), signal.SIGINT)
        assert "SIGINT: stopping after the steps under way; without out= nothing is kept" in capfd.readouterr().err

        signal.signal(number, signal.SIG_IGN)  # as nohup does
        with listening() as stop:
            os.kill(os.getpid(), number)
            assert stop.signal is None
        assert signal.getsignal(number) == signal.SIG_IGN

        heard = []
        signal.signal(number, lambda *which: heard.append(which[0]))  # a user's own
        with listening() as stop:
            os.kill(os.getpid(), number)
            assert (heard, stop.signal) == ([number], None)
    finally:
        signal.signal(number, before)


#: A sweep's listener on a terminal of its own, which is closed; its parent has no threads, as it has no JAX.
TERMINAL = """
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], sys.argv[2]])
said = b""
while b"ready" not in said:
    said += os.read(terminal, 1000)
os.close(terminal)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""
LISTENER = """
import sys, time
from jaxsign.sweep.progress import listening
with listening() as stop:
    print("ready", flush=True)
    while not stop.signal:
        time.sleep(0.01)
    for stream in (sys.stdout, sys.stderr):
        print("saved", file=stream, flush=True)
open(sys.argv[1], "w").write(stop.signal)
"""


def test_a_closed_terminal_does_not_end_a_sweep_without_a_save(tmp_path):
    command = [sys.executable, "-c", TERMINAL, LISTENER, str(tmp_path / "done")]
    subprocess.run(command, check=True, timeout=60, cwd=Path(js.__file__).parent.parent)
    assert (tmp_path / "done").read_text() == "SIGHUP"


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="the system sends no signals to threads")
def test_an_interrupt_in_a_hook_that_would_drop_it_is_heard_after_it():
    """JAX's hook for garbage prints what is raised in it, and Python's finalizers do likewise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    ended = []

    def _xla_gc_callback():
        signal.raise_signal(signal.SIGINT)
        ended.append("quietly")

    def waits():
        _xla_gc_callback()
        threading.Event().wait(20)

    try:
        with pytest.raises(KeyboardInterrupt), leaving.interruptible():
            waits()
        assert ended == ["quietly"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
