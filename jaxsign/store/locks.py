"""Who works in a results directory? One lock a shard with pid and host, and one around changes of the manifest."""

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxsign.store import times
from jaxsign.store.files import LOCKS, explain_os_errors, flock, make_folder, open_lock, read
from jaxsign.store.manifest import MANIFEST, UnusableData
from jaxsign.validation.messages import say, time_words
from jaxsign.validation.names import printable

FOLDER = LOCKS
#: Seconds after which a holder touches its lock again; on another machine, one that does not for three times as long
#: counts as gone.
HEARTBEAT = 20.0
#: Seconds of waiting for the manifest's lock before a line on stderr says so.
PATIENCE = 2.0
#: Seconds of trying to take a shard's lock: `others` holds it for a moment to see whether it is free.
SHARD_PATIENCE = 0.9

#: (index, count): shard 0 of 4 is (0, 4).
Shard = tuple[int, int]
_SHARD = re.compile(r"shard-(\d+)-of-([1-9]\d*)\.lock")
#: Descriptors that hold locks. A fork closes them at once: it would keep its parent's locks after the parent's end.
_HANDLES: set[int] = set()


class Busy(ValueError):
    """A living process holds the lock."""


class Held:
    """The lock of one shard, held by this process.

    Args:
      file: the lock's file.
      handle: its descriptor, locked.
      gone: words for a dead holder before this one, None if there was none.
    """

    def __init__(self, file: Path, handle: int, gone: str | None):
        self.file, self.handle, self.gone = file, handle, gone
        self._write(_this_process(since=times.now()) | {"epoch": None})  # no work begins before an epoch is known

    def _write(self, record: dict[str, Any]) -> None:
        self.record, self.text = record, json.dumps(record)
        _rewrite(self.handle, self.text)

    def works_by(self, epoch: int) -> None:
        """Notes the epoch of the manifest by which the holder works."""
        self._write({**self.record, "epoch": epoch})

    def lost(self) -> str | None:
        """Why this process does not hold the shard any more, None if it does."""
        return lost(self.file, self.text)

    def release(self, manifest: Path) -> None:
        """Empties the lock, or removes it if no manifest was made; a lock that another process took over stays."""
        if self.handle not in _HANDLES or os.pread(self.handle, 4096, 0).decode(errors="replace") != self.text:
            return
        os.ftruncate(self.handle, 0)  # an empty lock has no holder
        if _is_open_at(self.handle, self.file) and not manifest.exists():
            self.file.unlink()
            _remove_empty(self.file.parent)


@contextlib.contextmanager
def shard_lock(path: Path, shard: Shard) -> Iterator[Held]:
    """Holds one shard of a results directory, unless a living process holds blocks of it.

    Shard i of a takes the blocks i, i + a, i + 2 a, ...: shards of different counts may have blocks in common. The
    kernel drops a dead process's lock, so a shard is free at once when its holder on this machine is killed. A holder
    on another machine shows that it lives by touching its lock every HEARTBEAT seconds.

    Args:
      path: results directory; it must exist.
      shard: (index, count).

    Raises:
      Busy: if a living process holds the shard, or another one that has blocks of it.
      ValueError: if the file system has no locks.
    """
    folder, words = path / FOLDER, f"shard {shard[0]}/{shard[1]} of {str(path)!r}"
    with explain_os_errors(path):
        make_folder(folder)
        watch(path, shard)
        file = folder / f"shard-{shard[0]}-of-{shard[1]}.lock"
        deadline = time.monotonic() + SHARD_PATIENCE
        try:
            while (handle := _taken(file, fcntl.LOCK_EX)) is None and time.monotonic() < deadline:
                time.sleep(0.1)
        except ValueError:
            file.unlink()  # a file system without locks: nobody can hold it
            _remove_empty(folder)
            raise
    if handle is None:
        raise Busy(f"{words} is being run by {_words(_holder(file))}")
    try:
        before, new = _holder(file), not os.fstat(handle).st_size
        if _elsewhere(before):
            reason = f"is being run by {_words(before)}; if that process is surely gone, delete {file}"
            raise Busy(f"{words} {reason}")
        _note_gone(handle, before)
        with manifest_lock(path):  # if two start at once, the second one sees the first
            for other, (i, count) in _shards(path).items():
                if other == file or not overlap(shard, (i, count)):
                    continue
                if holder := _at_work(other):
                    if new:
                        file.unlink()
                    raise Busy(f"{words} has blocks in common with shard {i}/{count}, run by {_words(holder)}")
                _mark_gone(other)  # workers of a dead driver then stop
            before.pop("gone", None)
            dead = f"{_words(before)}, which held shard {shard[0]}/{shard[1]}, is gone: going on" if before else None
            held = Held(file, handle, dead)
        done = threading.Event()
        beat = threading.Thread(target=_touch, args=(handle, done), daemon=True)
        beat.start()
        try:
            yield held
        finally:
            done.set()
            if handle in _HANDLES:  # a fork does not have the thread
                beat.join()
            held.release(path / MANIFEST)
    finally:
        _close(handle)


def overlap(one: Shard, other: Shard) -> bool:
    """Whether two shards (index, count) may have blocks in common.

    Examples:
      >>> overlap((0, 2), (1, 4)), overlap((0, 2), (2, 4)), overlap((0, 1), (3, 8))
      (False, True, True)
    """
    return (one[0] - other[0]) % math.gcd(one[1], other[1]) == 0


def others(path: Path, shard: Shard, epoch: int | None = None) -> list[str]:
    """Words for the living holders of other shards of a results directory.

    A holder on another machine counts as living unless `watch` has marked it as gone.

    Args:
      path: results directory.
      shard: (index, count) of the caller.
      epoch: only holders that work by this epoch of the manifest already; None for all.
    """
    words = []
    for file, other in _shards(path).items():
        holder = _at_work(file) if other != shard else None
        # Locks of earlier versions have no epoch; with None, the holder is about to read the manifest.
        if holder and (epoch is None or holder.get("epoch", epoch) == epoch):
            words.append(f"{file.stem}: {_words(holder)}")
    return words


def holders(path: Path) -> tuple[list[str], list[str]]:
    """(words for the processes that run a results directory, words for those that ended without releasing their lock).

    Nothing is locked unless a process with the recorded number lives: a run that starts at this moment would otherwise
    find its lock taken. Processes on other machines are judged by when they last touched their lock.
    """
    running: list[str] = []
    gone: list[str] = []
    for file, (index, count) in _shards(path).items():
        try:
            holder = _holder(file)
            words = f"process {holder['pid']} on {holder['host']} since {times.words(times.parse(holder['since']))}"
            here, age = holder["host"] == socket.gethostname(), time.time() - file.stat().st_mtime
            lives = _lives_here(int(holder["pid"]), file) if here else age < 3 * HEARTBEAT
        except (OSError, ValueError, KeyError, TypeError):  # nobody's, or being written
            continue
        shard = "" if count == 1 else f"shard {index}/{count}: "
        last = "" if here else f", last sign of life {time_words(max(age, 0.0))} ago"
        (running if lives and not holder.get("gone") else gone).append(f"{shard}{words}{last}")
    return running, gone


def _lives_here(pid: int, file: Path) -> bool:
    """Whether a process of this machine lives and holds a lock."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False  # another process has the number by now


def watch(path: Path, shard: Shard | None = None) -> None:
    """Watches all locks of other machines at once, and marks those that nobody touches: from then on they are free.

    Returns as soon as one is touched. Clocks of two machines are not compared.

    Args:
      path: results directory.
      shard: (index, count), to watch only shards that have blocks in common with it; None for all.
    """
    watched: dict[Path, tuple[str, int]] = {}
    for file, other in _shards(path).items():
        with contextlib.suppress(FileNotFoundError):
            if (shard is None or overlap(shard, other)) and _elsewhere(_holder(file)):
                watched[file] = file.read_text(errors="replace"), os.stat(file).st_mtime_ns
    if not watched:
        return
    count = "a lock" if len(watched) == 1 else f"{len(watched)} locks"
    say(f"{path}: watching {count} of other hosts for up to {3 * HEARTBEAT:.0f} s")
    end = time.monotonic() + 3 * HEARTBEAT
    while time.monotonic() < end:
        time.sleep(min(1.0, HEARTBEAT / 4))
        for file, (_, touched) in list(watched.items()):
            try:
                if os.stat(file).st_mtime_ns != touched:
                    return
            except FileNotFoundError:
                del watched[file]
    for file, (text, _) in watched.items():
        _mark_gone(file, text)


def lost(file: Path, text: str) -> str | None:
    """Why the process that wrote this text into a lock does not hold it any more; None if it does."""
    try:
        if file.read_text(errors="replace") == text:  # opened anew, since network file systems cache an open file
            return None
    except FileNotFoundError:
        return f"lost {file.name}, which was deleted,"
    holder = _holder(file)
    if not holder or holder.get("gone"):
        return f"was given up by the holder of {file.name}, or that one was taken for dead,"
    return f"was taken over by {_words(holder)}"


def take_over(file: Path) -> str:
    """Takes a lock over from any holder, who learns of it by `lost`; returns the text to give to `lost`.

    The caller holds the manifest's lock.
    """
    text = json.dumps(_this_process())
    handle = _opened(file, make=True)
    try:
        _rewrite(handle, text)
    finally:
        _close(handle)
    return text


def _this_process(**since: str) -> dict[str, Any]:
    """A lock's record of this process; the token tells two holds of one process apart."""
    return {"pid": os.getpid(), "host": socket.gethostname(), **since, "token": secrets.token_hex(4)}


def _rewrite(handle: int, text: str) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)


def _shards(path: Path) -> dict[Path, Shard]:
    """{file: (index, count)} of every lock of a shard."""
    names = {file: _SHARD.fullmatch(file.name) for file in sorted((path / FOLDER).glob("shard-*.lock"))}
    return {file: (int(name[1]), int(name[2])) for file, name in names.items() if name}


def _remove_empty(folder: Path) -> None:
    """Removes the folder of locks unless another shard has a lock there."""
    if not list(folder.glob("shard-*.lock")):
        (folder / "manifest.lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def manifest_lock(path: Path) -> Iterator[None]:
    """Waits for, then holds, the lock around changes of the manifest and of the arrays' shapes."""
    folder = path / FOLDER
    with explain_os_errors(path):
        make_folder(folder)
        handle = _waited(folder, fcntl.LOCK_EX, make=True)
    try:
        yield
    finally:
        _close(handle)


@contextlib.contextmanager
def writing_lock(path: Path, exclusive: bool) -> Iterator[None]:
    """Holds the manifest's lock while something is written.

    Args:
      path: results directory, with its locks; nothing is created.
      exclusive: without other writers, as for changes of the manifest; otherwise the lock is shared with them.

    Raises:
      FileNotFoundError: if the lock is not there any more.
    """
    handle = _waited(path / FOLDER, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, make=False)
    try:
        yield
    finally:
        _close(handle)


def _waited(folder: Path, kind: int, make: bool) -> int:
    """A descriptor that holds the manifest's lock; a line on stderr tells of a long wait."""
    patience: float | None = time.monotonic() + PATIENCE
    while (handle := _taken(folder / "manifest.lock", kind, make)) is None:
        if patience and time.monotonic() > patience:
            say(f"{folder.parent}: waiting for {MANIFEST}, which another process is making, extending or mending")
            patience = None
        time.sleep(0.05)
    return handle


def _opened(file: Path, make: bool) -> int:
    handle = open_lock(file, make)
    _HANDLES.add(handle)
    return handle


def _close(handle: int) -> None:
    if handle in _HANDLES:
        _HANDLES.discard(handle)
        os.close(handle)


def _leave_parents_locks() -> None:
    while _HANDLES:
        os.close(_HANDLES.pop())


os.register_at_fork(after_in_child=_leave_parents_locks)


def _is_open_at(handle: int, file: Path) -> bool:
    """Whether the name still belongs to the file that was opened."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _taken(file: Path, kind: int, make: bool = True) -> int | None:
    """A descriptor that holds a lock, found without waiting; None if another process holds it."""
    while True:
        handle = _opened(file, make)
        try:
            flock(handle, kind | fcntl.LOCK_NB, file.parent.parent)
            if _is_open_at(handle, file):
                return handle
        except BaseException as error:
            _close(handle)
            if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        _close(handle)  # a start that was refused has removed the file meanwhile: once more


def _holder(file: Path) -> dict[str, Any]:
    """A lock's record of its holder; {} if the lock is empty, half-written or removed."""
    try:
        holder = json.loads(read(file, 4096) or b"{}")
    except (ValueError, UnusableData, FileNotFoundError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _words(holder: dict[str, Any]) -> str:
    if not holder or holder.get("gone"):
        return "a process that is just starting"
    words = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
    return printable(words if len(words) <= 200 else f"{words[:197]}...")


def _elsewhere(holder: dict[str, Any]) -> bool:
    """Whether the holder is on another machine, and not known to be dead."""
    return bool(holder) and holder.get("host") != socket.gethostname() and not holder.get("gone")


def _at_work(file: Path) -> dict[str, Any] | None:
    """The living holder of a lock, found without waiting; None if there is none, or no record of it yet."""
    holder = _holder(file)
    if not holder or holder.get("gone"):
        return None
    if _elsewhere(holder):
        return holder
    try:
        handle = _taken(file, fcntl.LOCK_SH, make=False)
    except FileNotFoundError:
        return None
    if handle is None:
        return holder
    _close(handle)
    return None


def _mark_gone(file: Path, text: str | None = None) -> None:
    """Notes in a lock that its holder is dead, if it still contains `text`: no other process has to find out again."""
    try:
        handle = _taken(file, fcntl.LOCK_EX, make=False)
    except FileNotFoundError:
        return
    if handle is None:  # the holder lives after all
        return
    try:
        if text is None or file.read_text(errors="replace") == text:
            _note_gone(handle, _holder(file))
    finally:
        _close(handle)


def _note_gone(handle: int, holder: dict[str, Any]) -> None:
    """Notes in a lock, which this process has locked, that its recorded holder is dead."""
    if holder and not holder.get("gone"):
        touched = os.fstat(handle)
        _rewrite(handle, json.dumps({**holder, "gone": True}))
        os.utime(handle, ns=(touched.st_atime_ns, touched.st_mtime_ns))  # keeps the holder's last sign of life


def _touch(handle: int, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(handle)
