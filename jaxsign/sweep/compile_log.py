"""How many programs are traced and compiled by now, and how many seconds has that taken?"""

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator


class CompileLog:
    """Counts programs and the wall seconds in which they are traced and compiled, in any thread.

    A program is what the runs of a group are trained with, as `jaxsign plan` counts them; its parts, such as the
    drawing of data, are compiled side by side.

    Args:
      now: a clock, in seconds.

    Examples:
      >>> log = CompileLog()
      >>> log.expect(["first", "second"])
      >>> with log.working("first", "sign_gd"):
      ...     log.programs, log.compiled
      (2, 0)
      >>> log.programs, log.compiled
      (2, 1)
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self.now, self.lock = now, threading.Lock()
        self.announced: set[Hashable] = set()
        self.waiting: dict[Hashable, int] = {}  # {program: parts that are being traced or compiled}
        self.family: dict[Hashable, str] = {}
        self.taken: dict[Hashable, float] = {}
        self.active, self.since, self.before = 0, 0.0, 0.0
        self.purpose = self.traced = ""

    def expect(self, programs: Iterable[Hashable]) -> None:
        """Announces the programs that train runs, in place of those announced before; only these are counted."""
        with self.lock:
            self.announced = set(programs)

    def submitted(self, program: Hashable) -> None:
        """A part of a program waits for its thread, which will be `working` on it."""
        with self.lock:
            self.waiting[program] = self.waiting.get(program, 0) + 1

    @contextlib.contextmanager
    def working(self, program: Hashable, family: str, submitted: bool = False) -> Iterator[None]:
        """Counts the time inside as spent on a program of an optimizer family.

        Args:
          program: the program.
          family: the family; it is being traced.
          submitted: whether this is a part that was submitted, which is being compiled.
        """
        if not submitted:
            self.submitted(program)
            self.traced = family
        with self.lock:
            begun = self.now()
            self.since = self.since if self.active else begun
            self.active += 1
            self.family.setdefault(program, family)
        try:
            yield
        finally:
            if not submitted:
                self.traced = ""
            with self.lock:
                ended = self.now()
                self.taken[program] = self.taken.get(program, 0.0) + ended - begun
                self.active -= 1
                self.waiting[program] -= 1
                if not self.active:
                    self.before += ended - self.since

    @contextlib.contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Names what programs are compiled for inside, where that is not the runs themselves."""
        self.purpose = what
        try:
            yield
        finally:
            self.purpose = ""

    @property
    def seconds(self) -> float:
        """Wall seconds in which something was traced or compiled, whatever else was done in them."""
        with self.lock:
            return self.before + (self.now() - self.since if self.active else 0.0)

    @property
    def programs(self) -> int:
        """Programs that train runs."""
        return len(self.announced)

    @property
    def compiled(self) -> int:
        """Those of them that are ready."""
        with self.lock:
            return sum(self.waiting.get(program) == 0 for program in self.announced)

    def by_family(self) -> dict[str, float]:
        """{optimizer family: seconds spent on its programs}; programs that are compiled side by side count in full."""
        with self.lock:
            out: dict[str, float] = {}
            for program, seconds in self.taken.items():
                out[self.family[program]] = out.get(self.family[program], 0.0) + seconds
            return out
