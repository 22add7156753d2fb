"""What is said while something runs: a line for whoever listens, and never an end of it where nobody does."""

import contextlib
import logging
import os
import select
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


class Voice:
    """A standard stream that is only ever talked to: closed, broken or full, it takes what is written and drops it.

    Args:
      name: "stderr" or "stdout", looked up in `sys` at every use.
    """

    def __init__(self, name: str = "stderr"):
        self.name = name

    def write(self, text: str) -> int:
        """Writes text if anybody is there."""
        try:
            self._tried("write", text)
        except UnicodeEncodeError:  # names of files may hold bytes that are no text
            self._tried("write", text.encode("ascii", "backslashreplace").decode())
        return len(text)

    def flush(self) -> None:
        """Flushes it if anybody is there."""
        self._tried("flush")

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return bool(self._tried("isatty"))

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self.name), name)

    def _tried(self, method: str, *arguments: str) -> Any:
        stream = getattr(sys, self.name)
        try:
            return getattr(stream, method)(*arguments) if stream is not None else None
        except UnicodeEncodeError:
            raise
        except (OSError, ValueError):  # ValueError: somebody has closed it
            leave_closed_streams()
            return None


def say(words: object, stream: str = "stderr") -> None:
    """Prints a line on a standard stream, at once; nothing where that stream is closed or its reader is gone.

    Args:
      words: the line.
      stream: "stderr" or "stdout".
    """
    voice = Voice(stream)
    voice.write(f"{words}\n")
    voice.flush()


def occupy_closed_streams() -> None:
    """Opens what stands for nothing where a standard stream is closed.

    The next file that is opened would get its number, and what libraries write to standard error would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _null(number)


def leave_closed_streams() -> None:
    """Sends nowhere what would go to a closed terminal or pipe: a later error would end what runs without a save."""
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, 0)
        if poll.poll(0):  # asked for nothing, so an error, a hang-up or no such file
            _null(number)


def redirect_stdout() -> OSError | None:
    """Sends nowhere what cannot be written to standard output; the error that it ended with, None if there is none."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _null(1)
        return error
    return None


def _null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


class _Silence:
    """Who has asked for silence: warnings and logging are the process's, and every thread that runs a sweep asks."""

    def __init__(self) -> None:
        self.lock, self.count, self.level = threading.Lock(), 0, 0
        self.warnings: Any = None

    def begin(self) -> None:
        with self.lock:
            if self.count == 0:
                self.level = logging.root.manager.disable
                logging.disable(logging.CRITICAL)
                self.warnings = warnings.catch_warnings()
                self.warnings.__enter__()
                warnings.simplefilter("ignore")
            self.count += 1

    def end(self) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0:
                self.warnings.__exit__(None, None, None)
                logging.disable(self.level)


_SILENCE = _Silence()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silences the libraries' own warnings and logging, which speak of their insides; for any number of threads."""
    _SILENCE.begin()
    try:
        yield
    finally:
        _SILENCE.end()
