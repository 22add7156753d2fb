"""How does a sweep that was told to stop leave the process: in one line, and without waiting for XLA?"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from types import FrameType, TracebackType
from typing import Any, NoReturn

from jaxsign.validation.messages import say

#: Compilations that nobody waits for any more. XLA cannot be interrupted, and Python waits for its threads at the end.
_ABANDONED: list[Future] = []


class Interrupted(KeyboardInterrupt):
    """A signal arrived; the message says what is kept. With `out=`, finished runs and a checkpoint of the others."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows."""
        return [str(self)]


def swallows(frame: FrameType | None) -> bool:
    """Whether Python would print and drop an exception that is raised now: in a finalizer, or JAX's hook for garbage.

    Long stretches of tracing run no other Python code, so this is where a signal is often heard.
    """
    while frame is not None:
        if frame.f_code.co_name in ("_xla_gc_callback", "__del__"):
            return True
        frame = frame.f_back
    return False


def again(number: int) -> None:
    """Sends a signal once more, after the code that would swallow what its handler raises."""
    threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, number)).start()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt inside, as Python does it, but never where Python or JAX would drop it."""
    main = threading.current_thread() is threading.main_thread()
    if not (main and signal.getsignal(signal.SIGINT) is signal.default_int_handler and hasattr(signal, "pthread_kill")):
        yield
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if swallows(frame):
            again(number)
            return
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def abandon(compiling: Iterable[Future]) -> None:
    """Remembers compilations that go on although their results are not needed any more."""
    _ABANDONED[:] = [future for future in (*_ABANDONED, *compiling) if future.running()]


def explain() -> None:
    """From now on, an `Interrupted` that ends a script is one line instead of a traceback, and ends it by SIGINT.

    A hook that somebody else has set stays.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _hook


def leave(status: int) -> int:
    """Ends the process with an exit status if a compilation would hold it up; otherwise returns the status.

    Functions that were registered with `atexit` are called, and results are on disk, as after any other stop. A
    notebook and an interactive Python go on.
    """
    if _compiling() and not _interactive():
        _finish()
        os._exit(status)
    return status


def _compiling() -> bool:
    return any(future.running() for future in _ABANDONED)


def _interactive() -> bool:
    """Whether the process goes on after an exception."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None or hasattr(sys, "ps1") or bool(sys.flags.interactive)


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, Interrupted):
        sys.__excepthook__(kind, error, trace)
        return
    say(error)
    if _interactive():
        return
    if not _compiling():
        threads: Any = threading  # its end is not public
        threads._shutdown()  # waits for all threads, also those of the user
    _end_as_python_does()


def _end_as_python_does() -> NoReturn:
    """Ends by SIGINT, which a shell sees as 130, as Python does after a KeyboardInterrupt, but not after a subclass."""
    _finish()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(130)  # where the signal is blocked


def _finish() -> None:
    """What Python does before it waits for threads and takes itself apart."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or none
            stream.flush()
