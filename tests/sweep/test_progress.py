"""Signals that stop a sweep, and those that do not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import jaxsign as js
from jaxsign.sweep.progress import listening


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
