"""Blocks as tasks of a Dask cluster: every worker opens the same directory, a lost worker's block runs elsewhere."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.compilation import undisturbed
from jaxsign.sweep.definition import content_hash, definition
from jaxsign.sweep.environment import cores
from jaxsign.sweep.grid import Sweep
from jaxsign.sweep.opening import Limits, Missing
from jaxsign.sweep.progress import Interrupted, Progress, Stop
from jaxsign.sweep.session import Session

#: Seconds to wait for a scheduler to answer.
TIMEOUT = 10
#: Tasks that wait at the scheduler for every one that runs: the rest stays here, where it costs no memory there.
AHEAD = 2


class Order(NamedTuple):
    """What a worker is asked to do.

    Args:
      sweep: the sweep.
      path: results directory, the same for all machines.
      limits: what a call may use.
      x64: whether floats have 64 bits.
      flags: XLA_FLAGS.
      missing: {number of a block: which of its runs to run}.
    """

    sweep: Sweep
    path: str
    limits: Limits
    x64: bool
    flags: str
    missing: dict[int, np.ndarray]


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """A client of the scheduler at an address; None without one.

    Raises:
      ValueError: if Dask is not installed or the scheduler does not answer.
    """
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            f"scheduler={address!r} needs Dask: install jaxsign with the extra cluster (jaxsign[cluster])"
        ) from None
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what matters is said in our own words
    try:
        client = Client(address, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"scheduler must be the address of a running Dask scheduler, got {address!r}, which is silent: {reason}"
        ) from None
    finally:
        logger.setLevel(level)
    try:
        logger.setLevel(logging.CRITICAL)
        yield client
    finally:
        client.close()
        logger.setLevel(level)


def run(client: Any, session: Session, missing: Missing, stop: Stop, progress: Progress) -> None:
    """Has the workers of a cluster run what is missing.

    Args:
      client: from `connected`.
      session: the directory, opened here; it is made or extended by now.
      missing: {number of a block: which of its runs are missing}.
      stop: whether a signal has arrived.
      progress: what is said.

    Raises:
      Interrupted: after a signal; blocks that workers had begun are finished there or begin again next time.
      ValueError: if a block fails on every worker that tries it.
    """
    from distributed import wait
    from distributed.scheduler import KilledWorker

    waiting = session.pieces(missing)[::-1]
    flags, x64 = os.environ.get("XLA_FLAGS", ""), jnp.zeros(()).dtype == jnp.float64
    under_way: set[Any] = set()
    try:
        while waiting or under_way:
            workers = len(client.scheduler_info(n_workers=-1)["workers"])
            progress.doing(f"{workers} workers")
            while waiting and len(under_way) < AHEAD * max(workers, 1):
                order = Order(session.sweep, str(session.path.absolute()), session.limits, x64, flags, waiting.pop())
                under_way.add(client.submit(work, order, pure=False))
            with contextlib.suppress(TimeoutError), client.as_current():
                wait(under_way, timeout=1, return_when="FIRST_COMPLETED")
            for future in [future for future in under_way if future.done()]:
                under_way.remove(future)
                try:
                    runs, diverged = future.result()
                except KilledWorker as error:
                    raise ValueError(
                        f"a block was given up after it ended several workers, the last one {error.last_worker.address}"
                    ) from None
                except Exception as error:
                    raise ValueError(f"a block failed on a worker: {type(error).__name__}: {error}") from error
                progress.trained(runs, session.sweep.schedule.steps)
                progress.finished(runs, diverged)
            if stop.asked:
                raise Interrupted(stop.asked)
    finally:
        client.cancel(list(under_way))


#: One block at a time in a worker's process, which keeps the directory open and the programs compiled.
_BUSY = threading.Lock()
_OPEN: dict[tuple[str, str], Session] = {}


@undisturbed()
@jax.disable_jit(False)
def work(order: Order) -> tuple[int, int]:
    """Runs one piece in a worker; returns how many runs that were, and how many of them diverged."""
    with _BUSY:
        os.environ.setdefault("XLA_FLAGS", order.flags)
        jax.config.update("jax_enable_x64", order.x64)
        with contextlib.suppress(RuntimeError):  # JAX has started: it has the devices that it has
            jax.config.update("jax_num_cpu_devices", cores())
        key = order.path, content_hash(definition(order.sweep))
        if key not in _OPEN:
            _OPEN[key] = Session(order.sweep, Path(order.path), (0, 1), order.limits)
        session = _OPEN[key]
        count = sum(int(mine.sum()) for mine in order.missing.values())
        with Progress(count, order.sweep.schedule.steps, quiet=True) as progress:
            session.run(order.missing, Stop(), progress)
            return progress.runs, progress.diverged
