"""What a running sweep says on stderr, and which signals stop it."""

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from jaxsign.compilation import idle_cores
from jaxsign.sweep.compile_log import CompileLog
from jaxsign.sweep.leaving import Interrupted, again, explain, swallows
from jaxsign.validation.messages import DISPLAYS, WRITING, Voice, clock, counted, leave_closed_streams, say, time_words

#: Without a terminal, the first line is printed after so many seconds. A sweep that is done before says nothing.
FIRST_LINE = 0.8
#: The time between two lines grows with the time so far, from 5 seconds to this.
LINE_EVERY = 60.0
#: Seconds between two looks at whether something is to be shown.
TICK = 0.2


class Progress:
    """Shows what a sweep does and how far it is: as a bar on a terminal and in a notebook, elsewhere as some lines.

    The display begins in the first second, with planning and compiling, and goes on while long calls keep the caller
    busy, since a thread of its own draws it. Everything goes to stderr, or into a widget of the notebook.

    Args:
      total: runs to do, as far as that is known.
      steps: optimizer steps of a run.
      quiet: count only.
      now: a clock, in seconds.
    """

    def __init__(self, total: int, steps: int, quiet: bool = False, now: Callable[[], float] = time.monotonic):
        self.steps, self.quiet, self.now = steps, quiet, now
        self.log = CompileLog(now)
        self.started = now()
        self.due = self.started + FIRST_LINE
        self.activity, self.preparing = "planning", True
        self.idle = ""  # "1 of 16 cores" where others have nothing to do
        self.bar: Any = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="progress of jaxsign", daemon=True)
        self.expect(total)

    def expect(self, total: int) -> None:
        """Begins to count, once the number of runs to do is known."""
        self.total = total
        self.runs = self.diverged = self.seed_steps = 0
        self.step: int | None = None
        # What this process trains, and the first call of it, which also draws the data.
        self.trained_steps, self.trained_seconds = 0, 0.0
        self.first: tuple[int, float] | None = None
        self.since: float | None = None

    def __enter__(self) -> "Progress":
        if not self.quiet:
            self.bar = _bar(*self.words())
            if self.bar is not None:
                DISPLAYS.append(self.bar)
            self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()
        if self.thread.ident is not None:
            self.thread.join(timeout=1)  # tqdm may keep its lock after a second Ctrl-C
        if self.bar is not None:
            DISPLAYS.remove(self.bar)
            if kind is None:
                self.bar.n = self.bar.total  # a widget would turn red
            self.bar.close()
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self._sum_up()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """The time inside is spent waiting for programs: it is no part of the training."""
        begun, self.preparing = self.now(), True
        yield
        self.preparing = False
        if self.since is not None:
            self.since += self.now() - begun

    def doing(self, activity: str) -> None:
        """Names what trains the runs from now on, such as the workers of a cluster."""
        self.activity, self.preparing, self.step = activity, False, None
        self.since = self.now() if self.since is None else self.since

    def training(self, family: str) -> None:
        """Runs of an optimizer family begin."""
        self.doing(family)
        self.step, self.idle = 0, idle_cores()

    def trained(self, runs: int, steps: int, step: int | None = None, before: bool = False) -> None:
        """Counts steps of some runs.

        Args:
          runs: number of runs.
          steps: steps that each of them has been trained.
          step: the step that they have reached.
          before: whether an earlier process has trained them.
        """
        self.seed_steps += runs * steps
        self.step = step
        if not before:
            now = self.now()
            self.trained_steps += runs * steps
            self.trained_seconds += 0.0 if self.since is None else now - self.since
            self.since, self.first = now, self.first or (self.trained_steps, self.trained_seconds)

    def finished(self, runs: int, diverged: int) -> None:
        """Counts finished runs."""
        self.runs += runs
        self.diverged += diverged

    @property
    def rate(self) -> float:
        """Seed-steps per second of this process after its first call."""
        steps, seconds = self.first or (0, 0.0)
        return (self.trained_steps - steps) / max(self.trained_seconds - seconds, 1e-9)

    def words(self) -> tuple[str, str]:
        """What is being done, and how far it is."""
        runs, so_far = counted(self.total, "run"), clock(self.now() - self.started)
        if self.preparing:
            if self.log.purpose:
                return self.log.purpose, f"{runs} of {counted(self.steps, 'step')}, {so_far}"
            if self.log.programs:
                programs = counted(self.log.programs, "program")
                activity = f"tracing {self.log.traced}" if self.log.traced else "compiling"
                return activity, f"{self.log.compiled} of {programs} ready, {clock(self.log.seconds)}"
            return self.activity, f"{runs} of {counted(self.steps, 'step')}, {so_far}"
        parts = [f"{self.runs} of {runs}"]
        if self.diverged:
            parts.append(f"{self.diverged} diverged")
        if self.rate:
            left = max(self.total * self.steps - self.seed_steps, 0) / self.rate
            parts += [f"{clock(left)} left", f"{_number(self.rate)} seed-steps/s"]
        parts += [self.idle] * bool(self.idle)
        parts.append(f"{so_far} so far")
        place = "" if self.step is None else f", step {self.step} of {self.steps}"
        return self.activity + place, ", ".join(parts)

    def tick(self) -> None:
        """Shows what has changed: in the bar, or in a line if one is due."""
        if self.bar is None:
            now = self.now()
            if now >= self.due:
                self.due = now + min(LINE_EVERY, max(5.0, now - self.started))
                say(": ".join(self.words()))
            return
        share = min(self.seed_steps / max(self.total * self.steps, 1), 1.0)
        drawing = share, _format(*self.words())
        if drawing != (self.bar.n, self.bar.bar_format):
            with WRITING:
                self.bar.n, self.bar.bar_format = drawing
                self.bar.refresh()

    def _watch(self) -> None:
        while not self.over.wait(TICK):
            self.tick()

    def _sum_up(self) -> None:
        """One line about what this process has done; none if that took no time."""
        seconds = self.now() - self.started
        if self.quiet or not self.trained_steps or seconds < FIRST_LINE:
            return
        diverged = f", {self.diverged} diverged" if self.diverged else ""
        programs = f"compiling {counted(self.log.compiled, 'program')} {time_words(self.log.seconds)}"
        speed = _number(self.trained_steps / max(self.trained_seconds, 1e-9))
        where = f" on {self.idle}" if self.idle else ""
        training = f"training {time_words(self.trained_seconds)}{where}, {speed} seed-steps/s"
        say(f"{self.runs} of {counted(self.total, 'run')}{diverged} in {time_words(seconds)}: {programs}, {training}")


def _bar(left: str, right: str) -> Any:
    """A bar of tqdm on a terminal or in a notebook, None elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not (hasattr(shell, "kernel") or Voice().isatty()):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook without ipywidgets the bar is text
        from tqdm.auto import tqdm
    width = {"ncols": 80} if _without_size() else {"dynamic_ncols": True}
    bar = tqdm(total=1, leave=False, file=Voice(), bar_format=_format(left, right), **width)
    return None if bar.disable else bar


def _without_size() -> bool:
    """Whether stderr is a terminal that says it has 0 columns, such as a container's: tqdm would draw nothing."""
    try:
        return os.get_terminal_size(2).columns == 0
    except OSError:
        return False


def _format(left: str, right: str) -> str:
    """Tqdm's format of a bar between two texts."""
    left, right = (text.replace("{", "{{").replace("}", "}}") for text in (left, right))
    return f"{left}: {{percentage:3.0f}}%|{{bar}}| {right}"


def _number(value: float) -> str:
    """Three digits of a number, without an exponent."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


#: Signals that a user sends; a second one stops at once.
REQUESTS = ("SIGINT", "SIGTERM")
#: Signals of a closed terminal, of a batch system whose time is nearly over, and of the limit of CPU time. The system
#: may send them more than once.
WARNINGS = ("SIGHUP", "SIGUSR1", "SIGXCPU")


#: What a signal does where there is no results directory.
NOTHING_KEPT = "stopping after the steps under way; without out= nothing is kept"
#: What a stop leaves before anything was trained, with and without a results directory.
BEFORE_TRAINING = {
    True: "this start has trained nothing yet; the next one begins where it did", False: "without out= nothing is kept"
}  # fmt: skip
#: What a second signal leaves.
AT_ONCE = {True: "the next start goes on from the last checkpoint", False: "without out= nothing is kept"}


class Stop:
    """The name of the first signal that has arrived, None if none has.

    While `preparing`, nothing has been trained and there is nothing to save: a signal stops at once.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.preparing = False


@contextlib.contextmanager
def listening(kept: bool = True) -> Iterator[Stop]:
    """Turns signals into a request to stop after the steps under way; a second SIGINT or SIGTERM stops at once.

    `kept` says whether anything is stored then. A script that this ends says so in one line.

    SIGHUP, SIGUSR1 and SIGXCPU are handled only where they would end the process: if they are ignored, as under nohup,
    or have a handler, that stays. Only Python's main thread can handle signals; in other threads this does nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    explain()
    before: dict[Any, Any] = {}
    heard: list[str] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if hasattr(signal, "pthread_kill") and swallows(frame):
            again(number)
            return
        name = signal.Signals(number).name
        if name in REQUESTS and any(earlier in REQUESTS for earlier in heard):
            raise Interrupted(f"{name}: stopped at once; {AT_ONCE[kept]}")
        heard.append(name)
        leave_closed_streams()
        if stop.signal is None:
            stop.signal = name
            if stop.preparing:
                raise Interrupted(f"{name}: {BEFORE_TRAINING[kept]}")
            hint = "; again to stop at once" if name in REQUESTS else ""
            after = "finishing the steps under way, then saving" if kept else NOTHING_KEPT
            say(f"{name}: {after}{hint}")

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
