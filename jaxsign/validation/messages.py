"""Messages of a running program: printed where a stream is open, dropped without an error where it is closed."""

import contextlib
import html
import io
import logging
import os
import select
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from jaxsign.validation.names import printable

#: Bars that are being drawn on standard error: objects with `clear` and `refresh`.
DISPLAYS: list[Any] = []
#: Held while a line is printed or a bar is drawn, so that neither ends up inside the other.
WRITING = threading.RLock()


class Voice:
    """A standard stream for messages: where it is closed, broken or full, they are dropped without an error.

    Args:
      name: "stderr" or "stdout", looked up in `sys` at every use.
    """

    def __init__(self, name: str = "stderr"):
        self.name = name

    def write(self, text: str) -> int:
        """Writes text if the stream is open."""
        try:
            self._tried("write", text)
        except UnicodeEncodeError:  # file names may hold bytes that are not text
            self._tried("write", text.encode("ascii", "backslashreplace").decode())
        return len(text)

    def flush(self) -> None:
        """Flushes the stream if it is open."""
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
        except (OSError, ValueError):  # ValueError: the stream has been closed
            leave_closed_streams()
            return None


def say(words: object, stream: str = "stderr") -> None:
    """Prints a `printable` line on a standard stream, at once; nothing where it is closed or its reader is gone.

    Args:
      words: the line.
      stream: "stderr" or "stdout".
    """
    voice = Voice(stream)
    with WRITING:
        for display in DISPLAYS:
            display.clear()
        voice.write(f"{printable(words)}\n")
        voice.flush()
        for display in DISPLAYS:
            display.refresh()


def show(words: object) -> None:
    """Prints a requested `printable` line on standard output, at once.

    Raises:
      OSError: if it cannot be written.
    """
    print(printable(words), flush=True)


def size_words(count: int) -> str:
    """A number of bytes in words.

    Examples:
      >>> size_words(999), size_words(52_300), size_words(123_456_789), size_words(4 * 10**12)
      ('999 B', '52.3 kB', '123.5 MB', '4.0 TB')
    """
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def clock(seconds: float) -> str:
    """A duration in words.

    Examples:
      >>> clock(42), clock(200), clock(10_000), clock(1e6)
      ('42 s', '3.3 min', '2.8 h', '11.6 d')
    """
    for size, unit in ((86400, "d"), (3600, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / min(size, 60 if unit == 'min' else size):.1f} {unit}"
    return f"{seconds:.0f} s"


def time_words(seconds: float) -> str:
    """A duration in words.

    Examples:
      >>> time_words(0.003), time_words(4.25), time_words(42.0), time_words(200)
      ('< 0.1 s', '4.2 s', '42 s', '3.3 min')
    """
    short = "< 0.1 s" if seconds < 0.05 else f"{seconds:.1f} s"
    return short if seconds < 10 else clock(seconds)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 run", "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values as an HTML table for notebooks; what is empty is left out.

    Examples:
      >>> table([("steps", 20), ("watch", ""), ("system", "<lambda>")])
      '<table><tr><th>steps</th><td>20</td></tr><tr><th>system</th><td>&lt;lambda&gt;</td></tr></table>'
    """
    kept = [(name, value) for name, value in rows if value is not None and str(value) not in ("", "{}")]
    lines = [f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in kept]
    return f"<table>{''.join(lines)}</table>"


def drop_unsaid() -> None:
    """Drops buffered messages that standard error cannot write: at exit they would change the exit status."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        _null(2)


def occupy_closed_streams() -> None:
    """Opens the null device where a standard stream is closed.

    Otherwise the next opened file would get its number, and messages of libraries to standard error would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _null(number)


def leave_closed_streams() -> None:
    """Redirects a closed terminal or pipe to the null device: a later write error would end a run without a save."""
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, 0)
        if poll.poll(0):  # no event was requested: this is an error, a hang-up or no such file
            _null(number)


class Printed(io.TextIOBase):
    """Standard output that remembers the first write error and writes nothing after it.

    Args:
      stream: the original stream; None where it is closed.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Writes text.

        Raises:
          OSError: if it cannot be written.
        """
        self._tried("write", text)
        return len(text)

    def flush(self) -> None:
        """Flushes the written text.

        Raises:
          OSError: if it cannot be written.
        """
        self._tried("flush")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _tried(self, method: str, *arguments: str) -> None:
        try:
            if self.stream is not None and self.lost is None:
                getattr(self.stream, method)(*arguments)
        except OSError as error:
            self.lost = error
            _null(1)  # the stream writes its buffer when the process ends
            raise


def _null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


#: Warnings and logging belong to the process, and Orbax takes one caller at a time (0.12): threads take turns.
_ONE = threading.RLock()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silences the libraries' own warnings and logging, about their internals; for one thread at a time."""
    with _ONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
