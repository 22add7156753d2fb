"""What a running sweep says on stderr, and which signals stop it."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from jaxsign.validation.messages import Voice, clock, leave_closed_streams, say

#: Without a terminal, a line is printed this often (seconds).
LINE_EVERY = 60.0


class Progress:
    """Runs done, seed-steps per second, time left and diverged runs: a bar on a terminal, a line a minute elsewhere.

    Args:
      total: runs to do.
      steps: optimizer steps of a run.
      quiet: count only.
    """

    def __init__(self, total: int, steps: int, quiet: bool = False):
        from tqdm import tqdm

        self.total, self.steps, self.quiet = total, steps, quiet
        self.runs = self.diverged = self.seed_steps = 0
        self.started = self.said = time.monotonic()
        self.since: tuple[float, int] | None = None
        # disable=None: the bar is drawn on a terminal only.
        self.bar: Any = tqdm(
            total=total, unit="run", disable=quiet or None, leave=False, dynamic_ncols=True, file=Voice()
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()

    def doing(self, activity: str) -> None:
        """Names the activity in front of the bar."""
        self.bar.set_description(activity)

    def trained(self, runs: int, steps: int, before: bool = False) -> None:
        """Counts steps of some runs; `before`: an earlier process has trained them."""
        self.seed_steps += runs * steps
        if self.since is None or before:  # compiling is over; the first call is not timed
            self.since = time.monotonic(), self.seed_steps
        self._say()

    def finished(self, runs: int, diverged: int) -> None:
        """Counts finished runs."""
        self.runs += runs
        self.diverged += diverged
        self.bar.update(runs)
        self._say()

    @property
    def rate(self) -> float:
        """Seed-steps per second since the first steps."""
        since, before = self.since or (self.started, 0)
        return (self.seed_steps - before) / max(time.monotonic() - since, 1e-9)

    def words(self) -> str:
        """One line: runs done, speed, time left."""
        left = max(self.total * self.steps - self.seed_steps, 0) / max(self.rate, 1e-9)
        diverged = f", {self.diverged} diverged" if self.diverged else ""
        speed = f"{self.rate:.3g} seed-steps/s, {clock(left)} left" if self.rate else "no steps yet"
        return f"{self.runs} of {self.total} runs{diverged}, {speed}"

    def _say(self) -> None:
        if self.bar.disable:
            if not self.quiet and time.monotonic() - self.said >= LINE_EVERY:
                self.said = time.monotonic()
                say(self.words())
        else:
            self.bar.set_postfix_str(f"{self.rate:.3g} seed-steps/s, {self.diverged} diverged", refresh=False)


#: Signals that a user sends; a second one stops at once.
REQUESTS = ("SIGINT", "SIGTERM")
#: Signals of a closed terminal, of a batch system whose time is nearly over, and of the limit of CPU time. The system
#: may send them more than once.
WARNINGS = ("SIGHUP", "SIGUSR1", "SIGXCPU")


class Interrupted(KeyboardInterrupt):
    """A signal arrived. Finished runs are stored, and the others have a checkpoint."""


class Stop:
    """The name of the first signal that has arrived, None if none has."""

    def __init__(self) -> None:
        self.signal: str | None = None


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Turns signals into a request to stop after the steps under way; a second SIGINT or SIGTERM stops at once.

    SIGHUP, SIGUSR1 and SIGXCPU are handled only where they would end the process: if they are ignored, as under nohup,
    or have a handler, that stays. Only Python's main thread can handle signals; in other threads this does nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[Any, Any] = {}
    heard: list[str] = []

    def hear(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name in REQUESTS and any(earlier in REQUESTS for earlier in heard):
            raise KeyboardInterrupt
        heard.append(name)
        leave_closed_streams()
        if stop.signal is None:
            stop.signal = name
            hint = "; again to stop at once" if name in REQUESTS else ""
            say(f"{name}: finishing the steps under way, then saving{hint}")

    for name in (*REQUESTS, *WARNINGS):
        number = getattr(signal, name, None)
        if number is not None and (name in REQUESTS or signal.getsignal(number) == signal.SIG_DFL):
            before[number] = signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if heard:
            leave_closed_streams()
