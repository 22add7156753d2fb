"""What do all commands share: arguments, exit statuses, errors in one line, and the settings of JAX?"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from jaxsign.compilation import no_platform, start_on_every_core
from jaxsign.store.results import UnusableData
from jaxsign.sweep.leaving import interruptible, leave
from jaxsign.validation.messages import Printed, drop_unsaid, occupy_closed_streams, say
from jaxsign.validation.values import positive_int, real

DONE, FAILED, BAD_INPUT, UNUSABLE, INTERRUPTED = 0, 1, 2, 3, 130
#: The status that a shell gives a program which wrote to a pipe without a reader (128 + SIGPIPE).
UNHEARD = 141


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line with exit status 2, and takes no option by its beginning."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **more})

    def error(self, message: str) -> Any:
        """Prints one line and exits."""
        say(f"{self.prog}: {message}")
        raise SystemExit(BAD_INPUT)

    def exit(self, status: int = 0, message: str | None = None) -> Any:
        """Ends the process, for instance after help; quietly if nobody reads the output."""
        raise SystemExit(guarded(self.prog, lambda: status) if message is None else super().exit(status, message))


def count(text: str) -> int:
    """An option's value as an int >= 1."""
    try:
        return positive_int("value", int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an int >= 1, got {text!r}") from None


def positive(text: str) -> float:
    """An option's value as a number > 0."""
    try:
        return real("value", float(text), 0.0, open_low=True)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}") from None


def guarded(prog: str, work: Callable[[], int], resumes: bool = False) -> int:
    """Runs a command; bad input, damaged data and interrupts end in one line and their exit status.

    `resumes` says whether the same command goes on where it was interrupted.

    If the reader of the output is gone, as with `| head`, the command ends without a message, as other commands do.
    """
    occupy_closed_streams()
    printed = Printed(sys.stdout)
    try:
        printed.flush()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # names of files may contain bytes that are no text
        with contextlib.redirect_stdout(printed), interruptible():
            status = work()
            printed.flush()
        return status
    except OSError as error:
        if error is not printed.lost:
            raise
        if isinstance(error, BrokenPipeError):
            return UNHEARD
        status, message = BAD_INPUT, f"standard output cannot be written: {error.strerror or error}"
    except UnusableData as error:
        status, message = UNUSABLE, str(error)
    except ValueError as error:
        status, message = BAD_INPUT, str(error)
    except (RuntimeError, AssertionError):
        status, message = BAD_INPUT, no_platform()
        if not message:
            raise
    except KeyboardInterrupt as stop:
        where = f" ({stop})" if str(stop) else ""
        then = "; what is finished is kept, and the same command goes on" if resumes else ""
        status, message = INTERRUPTED, f"interrupted{where}{then}"
    finally:
        drop_unsaid()
    say(f"{prog}: {' '.join(message.split())}")
    drop_unsaid()
    return leave(status)


def configure(devices: int | None = None, x64: bool = False) -> None:
    """Sets options that JAX reads when it starts: CPU devices (default one per core), 64-bit floats, GPU determinism.

    Args:
      devices: CPU devices, int >= 1; None leaves a backend that has already started as it is.
      x64: 64-bit floats.

    Raises:
      ValueError: if `devices` is given but JAX has already started.
    """
    import jax

    flag = "--xla_gpu_deterministic_ops=true"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if x64:
        jax.config.update("jax_enable_x64", True)
    if devices is None:
        start_on_every_core()
        return
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        raise ValueError(f"devices={devices} cannot be set: JAX has already started in this process") from None
