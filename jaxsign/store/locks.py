"""Who works in a results directory: one lock a shard, with pid and host, and one around changes of the manifest."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxsign.store.files import LOCKS, flock, make_folder, named, open_lock, read
from jaxsign.store.manifest import MANIFEST, UnusableData

FOLDER = LOCKS
#: A holder on another machine touches its lock this often; without a touch for three times as long it counts as gone.
HEARTBEAT = 20.0


@contextlib.contextmanager
def shard_lock(path: Path, shard: tuple[int, int]) -> Iterator[str | None]:
    """Holds one shard of a results directory; yields what is to be said about a dead holder, None if there was none.

    The kernel drops a dead process's lock, so a shard whose holder was killed on this machine is free at once. A holder
    on another machine shows that it lives by touching its lock every HEARTBEAT seconds.

    Args:
      path: results directory; it must exist.
      shard: (index, count).

    Raises:
      ValueError: if a living process holds the shard.
    """
    folder = path / FOLDER
    file = folder / f"shard-{shard[0]}-of-{shard[1]}.lock"
    with named(path):
        make_folder(folder)
        handle = open_lock(file)
    try:
        # `others` holds a lock for a moment to see whether it is free.
        try:
            free = _try_flock(handle, path, tries=10)
        except ValueError:
            _remove_unused(path, file)
            raise
        if not free:
            raise ValueError(f"shard {shard[0]}/{shard[1]} of {str(path)!r} is being run by {_words(_holder(file))}")
        before = _holder(file)
        if before and before.get("host") != socket.gethostname() and _lives(file):
            raise ValueError(
                f"shard {shard[0]}/{shard[1]} of {str(path)!r} is being run by {_words(before)}; if that process is "
                f"surely gone, delete {file}"
            )
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        own = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with named(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(own).encode(), 0)
        gone = f"{_words(before)}, which held shard {shard[0]}/{shard[1]}, is gone: going on" if before else None
        done = threading.Event()
        beat = threading.Thread(target=_touch, args=(handle, done), daemon=True)
        beat.start()
        try:
            yield gone
        finally:
            done.set()
            beat.join()
            with named(path):
                os.ftruncate(handle, 0)  # an empty lock: nobody's
                _remove_unused(path, file)
    finally:
        os.close(handle)


def others(path: Path, shard: tuple[int, int]) -> list[str]:
    """Words for the living holders of other shards of a results directory."""
    out = []
    for file in sorted((path / FOLDER).glob("shard-*.lock")):
        if file.name == f"shard-{shard[0]}-of-{shard[1]}.lock":
            continue
        with named(path):
            handle = open_lock(file, make=False)
        try:
            free = _try_flock(handle, path)
            holder = _holder(file)
            if not free or (holder and holder.get("host") != socket.gethostname() and _lives(file)):
                out.append(f"{file.stem}: {_words(holder)}")
        finally:
            os.close(handle)
    return out


def _remove_unused(path: Path, file: Path) -> None:
    """Removes a lock, and the folder of locks unless another shard has one there (nothing was begun)."""
    folder = path / FOLDER
    if (path / MANIFEST).exists():
        return
    file.unlink()
    if not list(folder.glob("shard-*.lock")):
        (folder / "manifest.lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def manifest_lock(path: Path) -> Iterator[None]:
    """Waits for, then holds, the right to change the manifest and the shape of the arrays of a results directory."""
    folder = path / FOLDER
    with named(path):
        make_folder(folder)
        handle = open_lock(folder / "manifest.lock")
    try:
        with named(path):
            flock(handle, fcntl.LOCK_EX, path)
        yield
    finally:
        os.close(handle)


def _try_flock(handle: int, path: Path, tries: int = 1) -> bool:
    for _ in range(tries):
        try:
            flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        else:
            return True
        if tries > 1:
            time.sleep(0.1)
    return False


def _holder(file: Path) -> dict[str, Any]:
    """What a lock says about its holder; {} of an empty or half-written one."""
    try:
        holder = json.loads(read(file, 4096) or b"{}")
    except (ValueError, UnusableData):
        return {}
    return holder if isinstance(holder, dict) else {}


def _words(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"


def _lives(file: Path) -> bool:
    """Whether a holder on another machine touches its lock while we look; no two clocks are compared."""
    first, end = os.stat(file).st_mtime_ns, time.monotonic() + 3 * HEARTBEAT
    while time.monotonic() < end:
        time.sleep(min(1.0, HEARTBEAT / 4))
        if os.stat(file).st_mtime_ns != first:
            return True
    return False


def _touch(handle: int, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(handle)
