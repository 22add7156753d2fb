"""A sweep on a Dask cluster: every worker opens the same directory, and the task of a lost worker runs elsewhere."""

import asyncio
import contextlib
import hashlib
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.compilation import start_on_every_core, undisturbed
from jaxsign.store import locks
from jaxsign.store.lease import Stale
from jaxsign.sweep import shipping
from jaxsign.sweep.identity.definition import content_hash, definition
from jaxsign.sweep.layout import BlockRuns
from jaxsign.sweep.leaving import Interrupted
from jaxsign.sweep.plan import Limits
from jaxsign.sweep.progress import Progress, Stop
from jaxsign.sweep.worker import Joined, Session
from jaxsign.validation.messages import say

#: Seconds to wait for a scheduler to answer.
TIMEOUT = 10
#: Tasks at the scheduler per worker. The others wait in this process, where they cost the scheduler no memory.
AHEAD = 2
#: Loggers of Dask with a level of their own.
LOGGERS = ("distributed", "distributed.client")
#: Locks of pieces, see `work`.
PIECES = "piece-*.lock"


class Order(NamedTuple):
    """A task for a worker: the sweep, its directory, and the runs to train.

    Args:
      sweep: the sweep, from `shipping.packed`.
      definition: hash of its definition.
      path: results directory, the same for all machines.
      joined: the directory as the driver has opened it.
      limits: limits of the run.
      x64: whether floats have 64 bits.
      flags: XLA_FLAGS.
      missing: {number of a block: which of its runs to run}.
    """

    sweep: bytes
    definition: str
    path: str
    joined: Joined
    limits: Limits
    x64: bool
    flags: str
    missing: dict[int, np.ndarray]

    def piece(self) -> str:
        """A name for the runs to train, the same for every worker."""
        digest = hashlib.sha256()
        for number, mine in sorted(self.missing.items()):
            digest.update(f"{number} {mine.tobytes().hex()} ".encode())
        return digest.hexdigest()[:16]


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """A client of the scheduler at an address; None without one.

    Raises:
      ValueError: if Dask is not installed, or no scheduler answers there.
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
    levels, lost = {name: logging.getLogger(name).level for name in LOGGERS}, False
    for name in LOGGERS:  # errors that matter are reported in our own words
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        _probe(address)
        try:
            client = Client(address, timeout=TIMEOUT, set_as_default=False)
        except Exception as error:  # Dask and its network raise many kinds
            raise ValueError(f"scheduler={address!r} does not answer: {_line(error)}") from None
        try:
            yield client
        finally:
            lost = client.status != "running"
            with contextlib.suppress(Exception):  # of a scheduler that is gone
                client.close(timeout=2)
    finally:
        if not lost:  # after a loss, threads of Dask would keep logging it
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _probe(address: str) -> None:
    """Checks that a scheduler listens at an address: Dask's client waits forever for some other servers.

    Raises:
      ValueError: unless it is a scheduler.
    """
    from distributed.core import rpc
    from distributed.security import Security

    async def ask() -> Any:
        security = Security().get_connection_args("client")
        async with rpc(address, timeout=TIMEOUT, connection_args=security) as remote:
            return await remote.identity()

    def bounded() -> Any:
        return asyncio.run(asyncio.wait_for(ask(), TIMEOUT))

    words = f"scheduler must be the address of a running Dask scheduler, got {address!r}, which "
    try:
        with ThreadPoolExecutor(1) as pool:  # the caller's thread may have an event loop of its own
            identity = pool.submit(bounded).result()
    except TimeoutError:
        raise ValueError(f"{words}does not answer within {TIMEOUT} s") from None
    except Exception as error:  # Dask and its network raise many kinds
        raise ValueError(f"{words}is silent or no scheduler: {_line(error)}") from None
    kind = identity.get("type") if isinstance(identity, dict) else None
    if kind != "Scheduler":
        raise ValueError(f"{words}is a {kind or 'stranger'}")


def _line(error: BaseException) -> str:
    """An error in one line, cut off after 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def run(
    client: Any, session: Session, by: locks.Held, missing: BlockRuns, stop: Stop, progress: Progress, patience: float
) -> None:
    """Lets the workers of a cluster train the missing runs.

    Args:
      client: from `connected`.
      session: the directory, opened by this process, which has made or extended it.
      by: this process's lock of the directory. Workers write only as long as it is held.
      missing: {number of a block: which of its runs are missing}.
      stop: the signal that has arrived.
      progress: counts runs and steps.
      patience: seconds to wait if there are no workers.

    Raises:
      Interrupted: after a signal; the next call resumes unfinished blocks from their checkpoints.
      ValueError: if a block fails on every worker that tries it, if the scheduler is lost, or there are no workers.
      Stale: if the directory was replaced since it was opened.
    """
    from distributed import wait

    waiting = session.pieces(missing)[::-1]
    if not waiting:
        return
    joined = Joined(session.lease.id, session.lease.epoch, by.file.name, by.text)
    flags, x64 = os.environ.get("XLA_FLAGS", ""), jnp.zeros(()).dtype == jnp.float64
    order = Order(
        shipping.packed(session.sweep), content_hash(definition(session.sweep)), str(session.path.absolute()), joined,
        session.plan.limits, x64, flags, {},
    )  # fmt: skip
    under_way: set[Any] = set()
    alone: float | None = None
    address = client.scheduler.address if client.scheduler is not None else "?"
    try:
        while waiting or under_way:
            session.lease.check()
            with _scheduler(address):
                workers = len(client.scheduler_info(n_workers=-1)["workers"])
            progress.doing(f"{workers} workers" if workers else "waiting for workers")
            alone = _waiting_for_workers(address, workers, alone, patience)
            with _scheduler(address):
                while waiting and len(under_way) < AHEAD * max(workers, 1):
                    under_way.add(client.submit(work, order._replace(missing=waiting.pop()), pure=False))
                with contextlib.suppress(TimeoutError), client.as_current():
                    wait(under_way, timeout=1, return_when="FIRST_COMPLETED")
            for future in [future for future in under_way if future.done()]:
                under_way.remove(future)
                with _scheduler(address):
                    status, error = future.status, future.exception(timeout=TIMEOUT)
                    if error is None and status == "finished":
                        runs, diverged = future.result(timeout=TIMEOUT)
                        progress.trained(runs, session.sweep.schedule.steps)
                        progress.finished(runs, diverged)
                if error is not None:
                    raise _failed(error)
            if stop.signal:
                raise Interrupted(f"{stop.signal}: the next start goes on from the workers' checkpoints")
    finally:
        with contextlib.suppress(Exception):  # of a scheduler that is gone
            client.cancel(list(under_way))
        with contextlib.suppress(Stale), session.lease.writing(exclusive=True):
            for file in (session.path / locks.FOLDER).glob(PIECES):
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def _scheduler(address: str) -> Iterator[None]:
    """Reports a lost scheduler in one error, whichever of its many kinds Dask raises."""
    try:
        yield
    except (OSError, TimeoutError, CancelledError, asyncio.CancelledError):
        raise ValueError(
            f"the Dask scheduler at {address!r} was lost, or has dropped this sweep's blocks; what is finished is "
            "kept, and the same command goes on with another scheduler"
        ) from None


def _waiting_for_workers(address: str, workers: int, since: float | None, patience: float) -> float | None:
    """The time since which there are no workers, None if there are some.

    Raises:
      ValueError: if there have been none for `patience` seconds.
    """
    if workers:
        return None
    now = time.monotonic()
    if since is None:
        words = f"waiting for workers (0 so far) of the scheduler at {address} for up to {patience:g} s"
        say(words)
        return now
    if now - since > patience:
        raise ValueError(
            f"no worker of the Dask scheduler at {address!r} for {patience:g} s (wait_for_workers={patience:g}): start "
            f"some with `dask worker {address}`, and the sweep again"
        )
    return since


def _failed(error: BaseException) -> BaseException:
    """The error to raise for a block that failed on a worker."""
    from distributed.scheduler import KilledWorker

    if isinstance(error, Stale):
        return error
    if isinstance(error, KilledWorker):
        last = error.last_worker.address
        return ValueError(f"a block was given up after it ended several workers, the last one {last}")
    hint = ""
    if "deserialization" in str(error):
        hint = "; jaxsign, JAX and Dask must be installed for the workers in the same versions as here"
    return ValueError(f"a block failed on a worker: {_line(error)}{hint}")


#: A worker's process trains one block at a time, and keeps the directory open and the programs compiled in between.
_BUSY = threading.Lock()
_OPEN: dict[tuple[str, str], Session] = {}


@undisturbed()
@jax.disable_jit(False)
def work(order: Order) -> tuple[int, int]:
    """Trains the runs of an order in a worker; returns how many runs that were, and how many of them diverged."""
    with _BUSY:
        os.environ.setdefault("XLA_FLAGS", order.flags)
        jax.config.update("jax_enable_x64", order.x64)
        start_on_every_core()
        session = _session(order)
        lease = session.lease
        # A lost worker may still train this piece: from here on its writes are refused.
        driver, mine = Path(order.path, locks.FOLDER, order.joined.lock), Path(order.path, locks.FOLDER, order.piece())
        mine = mine.with_name(PIECES.replace("*", mine.name))
        lease.held = {driver: order.joined.text}
        with lease.writing(exclusive=True):
            lease.held[mine] = locks.take_over(mine)
        count = sum(int(runs.sum()) for runs in order.missing.values())
        with Progress(count, session.sweep.schedule.steps, quiet=True) as progress:
            session.run(order.missing, Stop(), progress)
            return progress.runs, progress.diverged


def _session(order: Order) -> Session:
    """The open directory; it is opened again only if it is not the one that the driver has opened."""
    key = order.path, order.definition
    session = _OPEN.get(key)
    if session is not None:
        same = (session.lease.id, session.lease.epoch) == order.joined[:2]
        session.lease.held = {}
        try:
            session.lease.check()
        except Stale:
            same = False
        if same:
            return session
        del _OPEN[key]
        session.release()
    try:
        sweep = shipping.unpacked(order.sweep)
    except (ImportError, AttributeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"the sweep cannot be unpacked on {socket.gethostname()}: {_line(error)}: put the modules that it uses on "
            "the workers' PYTHONPATH"
        ) from None
    _OPEN[key] = Session(sweep, Path(order.path), (0, 1), order.joined, order.limits)
    return _OPEN[key]
