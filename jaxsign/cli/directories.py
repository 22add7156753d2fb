"""Which results directories do the DIR arguments of a command name?"""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from jaxsign.store import locks
from jaxsign.store.files import is_results
from jaxsign.store.manifest import ARRAYS, MANIFEST, UnusableData, has_manifest, inspect_manifest
from jaxsign.validation.messages import say
from jaxsign.validation.values import local_path

T = TypeVar("T")


def results_below(*directories: str) -> list[Path]:
    """The results directories at and below some directories, in their order, each of them once.

    Raises:
      NoResults: if there is none in one of them.
    """
    by_full_path: dict[Path, Path] = {}
    for directory in directories:
        for path in _below(directory):
            by_full_path.setdefault(path.resolve(), path)
    return list(by_full_path.values())


class NoResults(ValueError):
    """A directory holds no results, perhaps not yet."""


def _below(directory: str) -> list[Path]:
    """The results directories at and below a directory, sorted: finished, unfinished, damaged or being begun.

    Links are followed, but not out to a folder that contains `directory` itself. A directory with several names comes
    once, under a name without links if it has one. Folders that cannot be read are named on stderr.

    Raises:
      NoResults: if there is none.
    """
    top = local_path("DIR", directory)
    held: list[Path] = []
    folders: list[Path] = [top] if os.path.isdir(top) else []
    visited = {_identity(folder) for folder in top.resolve().parents} if folders else set()  # else some may be missing
    links: list[Path] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # all folders come before the first link
        try:
            identity = _identity(folder)
            if identity in visited:
                continue
            visited.add(identity)
            if _holds_results(folder):
                held.append(folder)  # no other results lie among its thousands of chunks
                continue
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(folder / entry.name)
                elif entry.is_symlink() and (os.path.isdir(entry) or not os.path.exists(entry)):
                    links.append(folder / entry.name)
        except OSError as error:
            kind = "folder"
            with contextlib.suppress(OSError):  # no link, or gone since
                kind = f"link to {os.readlink(folder)!r}"
            say(f"{folder}: left out: a {kind} that cannot be read: {error.strerror or error}")
    if not held:
        raise NoResults(
            f"DIR must hold finished results or those of a sweep under way ({MANIFEST} and {ARRAYS}), got {directory!r}"
        )
    return sorted(held)


def _identity(folder: Path) -> tuple[int, int]:
    """(device, inode), which all names of a folder share."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _holds_results(path: Path) -> bool:
    """Whether a directory belongs to a sweep, damaged or not; another program's manifest.json does not count."""
    held = (path / ARRAYS).is_dir() or any((path / locks.FOLDER).glob("shard-*.lock"))
    with contextlib.suppress(UnusableData):
        return held or inspect_manifest(path)[0] is not None
    return False


def each_usable(directories: Sequence[str], work: Callable[[Path], T]) -> tuple[dict[Path, T], int]:
    """({results directory: what `work` returns for it}, how many were left out) at and below some directories.

    A damaged one is named on stderr and left out; one without stored results is passed over.

    Raises:
      ValueError: if there is none.
      UnusableData: if all are damaged.
    """
    done: dict[Path, T] = {}
    damaged: list[str] = []
    for path in results_below(*directories):
        try:
            if is_results(path):
                done[path] = work(path)
            elif has_manifest(path) or (path / ARRAYS).is_dir():
                raise UnusableData(f"{path} must hold both {MANIFEST} and {ARRAYS}; jaxsign verify says what is left")
        except UnusableData as error:
            damaged.append(str(error))
    if not done and damaged:
        others = len(damaged) - 1
        more = f" (and {others} more {'directory' if others == 1 else 'directories'})" if others else ""
        raise UnusableData(damaged[0] + more)
    if not done:
        raise ValueError(f"DIR must hold results, nothing is stored yet in {', '.join(map(repr, directories))}")
    for line in damaged:
        say(f"left out: {line}")
    return done, len(damaged)
