"""Is a results directory still the one that a process has opened? This is checked before every write."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxsign.store import locks
from jaxsign.store.manifest import MANIFEST, UnusableData, read_manifest


class Stale(UnusableData):
    """The directory is not the one that was opened: a process that went on would write into another's results.

    The command was right, and is to be given again. So the exit status is the one for unusable data, not for bad input.
    """


class Lease:
    """The right to write into a results directory as it was opened.

    The right ends when the directory is moved, removed, begun anew, extended or defined anew, and when another process
    has taken over a lock that the work depends on. It never comes back: the command must be given again.

    Args:
      path: results directory with a manifest; the caller holds the manifest's lock.
      arrays: its folder of arrays.
      held: {lock: the text that it must contain}.
    """

    def __init__(self, path: Path, arrays: Path, held: Mapping[Path, str]):
        self.path, self.held, self.pid = path, dict(held), os.getpid()
        stored = read_manifest(path)
        assert stored is not None
        self.id, self.epoch = identity(stored)
        self.stamp = _stamp(path / MANIFEST)
        # Kept open: the inode number of a removed folder would otherwise be given to the next one.
        self.folders = {folder: os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in (path, arrays)}
        self.reason: str | None = None

    def close(self) -> None:
        """Closes the folders that the lease keeps open."""
        for handle in self.folders.values():
            os.close(handle)
        self.folders = {}

    def check(self) -> None:
        """Checks that the directory is still the one that was opened.

        Raises:
          Stale: with the reason.
        """
        self.reason = self.reason or self._reason()
        if self.reason:
            raise Stale(f"out={str(self.path)!r} {self.reason} while this process ran: start it again")

    @contextlib.contextmanager
    def writing(self, exclusive: bool = False) -> Iterator[None]:
        """Holds the manifest's lock, so that nothing changes the directory while something is written into it.

        Args:
          exclusive: without other writers.

        Raises:
          Stale: if the directory is not the one that was opened.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locks.writing_lock(self.path, exclusive))
            except (FileNotFoundError, NotADirectoryError):
                self.reason = self.reason or self._reason() or "lost its locks"
            self.check()
            yield

    def _reason(self) -> str | None:
        """Why the lease has ended, None if it has not."""
        if os.getpid() != self.pid:
            return "is written by the process that this one was forked from, and not by a fork"
        for folder, handle in self.folders.items():
            try:
                same = os.path.samestat(os.stat(folder), os.fstat(handle))
            except (FileNotFoundError, NotADirectoryError):
                return "was moved or removed"
            if not same:
                return "was moved or removed, and begun anew,"
        stamp = _stamp(self.path / MANIFEST)
        if stamp is None:
            return f"lost its {MANIFEST}"
        if stamp != self.stamp:
            stored = read_manifest(self.path)
            if stored is None:
                return f"lost its {MANIFEST}"
            if identity(stored)[0] != self.id and self.id is not None:
                return "was begun anew"
            if identity(stored) != (self.id, self.epoch):
                return "was extended or defined anew"
            self.stamp = stamp
        return next((reason for file, text in self.held.items() if (reason := locks.lost(file, text))), None)


def identity(manifest: Mapping) -> tuple[str | None, int]:
    """(id, epoch) of a manifest; (None, 0) for a manifest of an earlier version."""
    return manifest.get("id"), manifest.get("epoch", 0)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """(inode, time, size) of a file, which differ after it was replaced; None if it is missing."""
    try:
        handle = os.open(file, os.O_RDONLY)  # opened, since network file systems cache stat
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        status = os.fstat(handle)
    finally:
        os.close(handle)
    return status.st_ino, status.st_mtime_ns, status.st_size
