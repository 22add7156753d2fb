"""Which files belong to a sweep? Where it may write, what it may remove, and never through a link."""

import contextlib
import errno
import fcntl
import fnmatch
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxsign.store.binding import ZSTD_MAGIC
from jaxsign.store.manifest import ARRAYS, COPY, MANIFEST, UnusableData, has_manifest, write_json
from jaxsign.validation.values import local_path

LOCKS, CHECKPOINTS, TRAJECTORIES = "locks", "checkpoints", "trajectories"
#: Folders that may be links to another disk, where the user says so.
LINKABLE = (TRAJECTORIES, CHECKPOINTS)
#: In a folder that a link leads to: the results directory that it belongs to.
MARK = "results-directory.json"

_PARTIAL = r"([0-9a-f]{8}\.[0-9a-f]+|(manifest\.json|runs\.json|\d+\.json|\d{9}\.segment)\.\d+)\.partial"
_ORBAX = (
    r"(_CHECKPOINT_METADATA|_METADATA|_sharding|_strings\.json|orbax\.checkpoint|commit_success\.txt|state|pytree|"
    r"metadata|array_metadatas|d|(ocdbt\.)?process_\d+|manifest\.ocdbt|[0-9a-f]{32})(\.__lock|\.orbax-checkpoint-tmp.*)?"
)
#: Patterns of the names below a block, a checkpoint's state and a unit; names of folders end with "/".
BLOCK = re.compile(rf"\d+\.json|{_PARTIAL}|\d+(\.orbax-checkpoint-tmp[^/]*)?/({_ORBAX}/)*({_ORBAX})?")
STATE = re.compile(rf"({_ORBAX}/)*({_ORBAX})?")
UNIT = re.compile(rf"\d{{9}}\.segment|runs\.json|{_PARTIAL}")
_ZARR = r"\.[0-9a-f]{32}\.partial"
_TEMPLATE = re.compile(rf"([^/]+/)?zarr(\.json|{_ZARR})|[^/]+/(c({_ZARR})?|c/(\d+/)*(\d+({_ZARR})?)?)?")
_BLOCKS, _UNITS = re.compile(r"block-\d{6,}"), re.compile(r"unit-\d{6,}-[0-9a-f]{12}")
_PREPARED = re.compile(rf"{re.escape(ARRAYS)}\.[0-9a-f]+\.partial")
_LOCK = re.compile(r"[a-z]+(-\d+-of-\d+|-[0-9a-f]+)?\.lock")
#: Every JSON file of a sweep contains one of these words.
_JSON_WORDS = (b'"step"', b'"about"', b'"leaves"', b'"kind"', b'"runs"', b'"segments"')
#: The first bytes of a segment of a trajectory.
SEGMENT_MAGIC = b"jaxsign\x01"
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Maximum bytes of a lock.
_LOCK_BYTES = 4096


def directory(out: str | os.PathLike, links: Sequence[str] = ()) -> Path:
    """Checks that `out` can hold results: new, empty, or a results directory; returns its absolute path.

    Args:
      out: as given by the user; it may be a link itself.
      links: names of folders in it that may be links.

    Raises:
      ValueError: if it is no local path, a file, is not writable, holds something else, or lies in other results.
    """
    path = local_path("out", out).absolute()
    if len(os.fsencode(path)) > _longest():
        raise ValueError(
            f"out must have at most {_longest()} bytes, since files in it have longer paths, got {str(path)!r}"
        )
    with explain_os_errors(path):
        if path.is_symlink() and not path.exists():
            raise ValueError(f"out={str(path)!r} is a link to {os.readlink(path)!r}, which does not exist")
        for above in path.resolve().parents:
            if is_results(above):
                raise ValueError(f"out={str(path)!r} lies in the results directory {str(above)!r}: give one beside it")
        if path.exists() and not path.is_dir():
            raise ValueError(f"out must be a directory, got the file out={str(path)!r}")
        if path.exists() and not has_manifest(path):
            _refuse_strangers(path, links)
    return path


def _longest() -> int:
    """Maximum bytes of a results directory's path, which leave room for the paths of checkpoints and chunks."""
    return os.pathconf("/", "PC_PATH_MAX") - 512


def _refuse_strangers(path: Path, links: Sequence[str]) -> None:
    """Refuses a directory without a manifest, unless it holds only the remains of a sweep that was killed early."""
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        folder = entry.is_dir(follow_symlinks=False)
        if entry.is_symlink() and entry.name in LINKABLE:
            if reason := _link_refused(path, entry.name, links):
                raise ValueError(f"out must be new, empty or a results directory, got one in which {reason}")
            _refuse_foreign_mark(path / entry.name, None)
            continue
        if folder and entry.name == ARRAYS:
            raise ValueError(
                f"out={str(path)!r} holds {ARRAYS} without {MANIFEST}, which says what it is: put it back or move "
                "the arrays away"
            )
        stranger = None if _begun(path, entry.name) or (folder and _PREPARED.fullmatch(entry.name)) else entry.name
        if folder and entry.name in (LOCKS, *LINKABLE):
            names = sorted(os.listdir(path / entry.name))
            foreign = (name for name in names if entry.name != LOCKS or not _is_lock(path / LOCKS / name))
            stranger = next((f"{entry.name}/{name}" for name in foreign), None)
        if stranger is not None:
            raise ValueError(
                f"out must be new, empty or a results directory, got out={str(path)!r} with {stranger!r} and without "
                f"{MANIFEST}: move it away or choose another directory"
            )


def _begun(path: Path, name: str) -> bool:
    """Whether an entry is a temporary file of a sweep, or the copy of a manifest that is gone with its arrays."""
    if not (name == COPY or re.fullmatch(_PARTIAL, name)) or not stat.S_ISREG(os.lstat(path / name).st_mode):
        return False
    head = read(path / name, 4096)
    return not head.strip(b"\0 \n") or (
        head[:1] == b"{" and (name != COPY or b'"definition"' in head or b'"runs"' in head)
    )


def _is_lock(file: Path) -> bool:
    try:
        return bool(_LOCK.fullmatch(file.name)) and _like_lock(read(file, _LOCK_BYTES + 1))
    except (OSError, UnusableData):
        return False


def _like_lock(raw: bytes) -> bool:
    """Whether bytes may be a lock's content: nothing, or a small record, perhaps cut off."""
    if not raw.strip(b"\0 \n") or (raw[:1] == b"{" and len(raw) <= _LOCK_BYTES):
        return True
    try:
        json.loads(raw)
    except ValueError:
        return False
    return len(raw) <= _LOCK_BYTES


def writable(path: Path) -> None:
    """Checks that a directory, or the nearest one above that exists, can be written.

    Raises:
      ValueError: naming both.
    """
    probe = path
    while not probe.exists():
        probe = probe.parent
    if not probe.is_dir() or not os.access(probe, os.W_OK | os.X_OK):
        raise ValueError(f"out must be a writable directory, got out={str(path)!r} under {str(probe)!r}")


def is_results(path: Path) -> bool:
    """Whether a directory holds results, finished or not."""
    return has_manifest(path) and (path / ARRAYS).is_dir()


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turns an OSError about a directory (no such place, no permission, no space) into one line about `out`.

    Only this package's own work on files belongs inside: an error of the user's functions is not about `out`.

    Raises:
      ValueError: naming the directory and the system's reason.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        below = os.path.relpath(error.filename, path) if isinstance(error.filename, str) else "."
        where = "" if below == "." or below.startswith("..") else f" ({below})"
        raise ValueError(
            f"out must be a directory that can be made and written, got out={str(path)!r}: {reason}{where}"
        ) from None


# Links


def links_of(path: Path, stored: Mapping[str, Any] | None, links: Sequence[str]) -> dict[str, str]:
    """{folder: where it leads} of the links in the manifest and of those that the user allows now.

    Raises:
      ValueError: if a name is none of LINKABLE, or such a link leads nowhere, or to another directory's folder.
    """
    for name in links:
        if name not in LINKABLE:
            raise ValueError(f"links must be of {', '.join(map(repr, LINKABLE))}, got links={tuple(links)!r}")
    targets = dict((stored or {}).get("links", {}))
    for name in links:
        folder = path / name
        if folder.is_symlink():
            if not folder.is_dir():
                raise ValueError(f"{folder} is a link to {os.readlink(folder)!r}, which is not a folder")
            _refuse_foreign_mark(folder, (stored or {}).get("id"))
            if name in targets and not _mark_in(folder):
                raise ValueError(_not_mounted(folder))
            targets[name] = os.path.realpath(folder)
    return targets


def mark_links(path: Path, manifest: Mapping[str, Any], links: Sequence[str]) -> None:
    """Notes in every folder that a link of the user leads to which results directory it belongs to."""
    for name in links:
        if (path / name).is_symlink() and _mark_in(path / name).get("id") != manifest["id"]:
            write_json(path / name / MARK, {"id": manifest["id"], "directory": str(path)})


def _mark_in(folder: Path) -> dict[str, Any]:
    """The mark in a folder that a link leads to; {} if there is none."""
    try:
        mark = json.loads(read(folder / MARK, 2**16))
    except (OSError, ValueError, UnusableData):
        return {}
    return mark if isinstance(mark, dict) else {}


def _refuse_foreign_mark(folder: Path, identity: str | None) -> None:
    """Refuses a folder with the mark of another results directory than the one with this id."""
    mark = _mark_in(folder)
    if mark and (identity is None or mark.get("id") != identity):
        raise ValueError(
            f"{folder} leads to the folder {os.path.realpath(folder)!r} of the results directory "
            f"{mark.get('directory')!r}: link another one, or remove its {MARK}"
        )


def _not_mounted(link: Path) -> str:
    return (
        f"{link} leads to {os.path.realpath(link)!r}, in which there is no {MARK} any more: is that disk mounted? If "
        "its content is gone for good, put a new folder where the link was"
    )


def _link_refused(path: Path, name: str, links: Sequence[str] | Mapping[str, str]) -> str | None:
    """Why a folder must not be a link; None if the user has allowed this one."""
    if name not in links:
        return _allow(path / name, "")
    if isinstance(links, Mapping) and links[name] != os.path.realpath(path / name):
        return _allow(path / name, f", and led to {links[name]!r} when it was allowed")
    return None


def _allow(link: Path, but: str) -> str:
    """A line about a link that is not allowed, and how to allow it."""
    return (
        f"{link} is a link to {os.readlink(link)!r}{but}: if that is meant, say links=({link.name!r},), or "
        f"--allow-link {link.name} on the command line"
    )


def planted(path: Path, stored: Mapping[str, Any] | None = None, names: Sequence[str] | None = None) -> str | None:
    """A line about the first link, pipe or device in the place of a sweep's file or folder; None if there is none.

    A link would lead reads and writes out of the directory. Anyone who may write here, or the author of an archive
    that was unpacked here, could have any file of the user overwritten by one.

    Args:
      path: results directory.
      stored: its manifest, with the links that the user has allowed.
      names: look only at these entries of the directory; None: all of a sweep's.
    """
    links, identity = (stored or {}).get("links", {}), (stored or {}).get("id")
    for name in names or (LOCKS, ARRAYS, CHECKPOINTS, TRAJECTORIES):
        file = path / name
        try:
            mode = os.lstat(file).st_mode
        except OSError:
            continue
        if stat.S_ISLNK(mode) and name in LINKABLE:
            if reason := _link_refused(path, name, links):
                return reason
            if not (mark := _mark_in(file)):
                return _not_mounted(file)
            if mark.get("id") != identity:  # the manifest's links are not enough, since anybody may have written it
                return _allow(file, f", without a {MARK} of this one")
        elif not stat.S_ISDIR(mode):
            return _odd(file)
        if odd := _odd_below(str(file), {CHECKPOINTS: _BLOCKS, TRAJECTORIES: _UNITS}.get(name)):
            return _odd(Path(odd))
    return None


def refuse_links(path: Path, stored: Mapping[str, Any] | None = None, names: Sequence[str] | None = None) -> None:
    """Refuses a directory in which something is `planted`.

    Raises:
      UnusableData: naming it.
    """
    if reason := planted(path, stored, names):
        raise UnusableData(reason)


def _odd_below(folder: str, only: re.Pattern | None) -> str | None:
    """The first entry below a folder that is neither a file nor a folder; only in entries with names like `only`."""
    folders = [folder]
    while folders:
        above = folders.pop()
        # A sweep under way may remove folders meanwhile.
        with contextlib.suppress(FileNotFoundError), os.scandir(above) as entries:
            for entry in entries:
                if only and above == folder and not only.fullmatch(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                    return entry.path
    return None


def _odd(file: Path) -> str:
    """A line about an entry that is not the file or folder that a sweep has there."""
    mode = os.lstat(file).st_mode
    if stat.S_ISLNK(mode):
        return (
            f"{file} is a link to {os.readlink(file)!r}, and a sweep reads and writes through none: remove it, or put "
            "there what it leads to"
        )
    kind = "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "pipe or device"
    return f"{file} is a {kind} where a sweep has something else: move it away"


def make_folder(folder: Path) -> None:
    """Makes a folder unless it exists.

    Raises:
      UnusableData: if a link or a file has its name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        return
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise UnusableData(_odd(folder))


def inside(path: Path, below: Path) -> None:
    """Checks that no folder on the way from a results directory down is a link; missing folders are passed over.

    Raises:
      UnusableData: naming the first one.
    """
    for folder in reversed((below, *below.parents[:-1])):
        try:
            mode = os.lstat(path / folder).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            raise UnusableData(_odd(path / folder))


def read(file: Path, most: int) -> bytes:
    """The first bytes of a file, at most `most`; no link is followed, and no pipe is waited for.

    Raises:
      UnusableData: if it is no file.
      OSError: if it is missing or cannot be read.
    """
    handle = _opened(file, os.O_RDONLY)
    with open(handle, "rb") as stream:
        return stream.read(most)


def open_lock(file: Path, make: bool = True) -> int:
    """Opens a file for locking. Its mode follows the umask, so that a group may share it.

    Args:
      file: its name.
      make: whether to make it if it does not exist.

    Raises:
      UnusableData: if it is no lock of a sweep.
      OSError: if it cannot be opened.
    """
    handle = _opened(file, os.O_RDWR | (os.O_CREAT if make else 0))
    if not _like_lock(os.pread(handle, _LOCK_BYTES + 1, 0)):
        os.close(handle)
        raise UnusableData(f"{file} is not a lock of a sweep: move it away")
    return handle


def _opened(file: Path, flags: int) -> int:
    try:
        handle = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR) and os.path.lexists(file):
            raise UnusableData(_odd(file)) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UnusableData(_odd(file))
    return handle


def flock(handle: int, operation: int, path: Path) -> None:
    """`fcntl.flock`, which some file systems do not have.

    Raises:
      ValueError: on such a file system, naming the directory.
      OSError: as flock does, if the lock is held.
    """
    try:
        fcntl.flock(handle, operation)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
            raise
        raise ValueError(
            f"out={str(path)!r} is on a file system without file locks, by which processes keep out of each other's "
            f"way ({error.strerror}): mount it with them (Lustre: -o flock), or choose another one"
        ) from None


def files_below(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder with names like a pattern, sorted; a running sweep may remove them meanwhile."""
    return sorted(Path(parent, file) for parent, _, names in os.walk(folder) for file in fnmatch.filter(names, pattern))


# Removal


def remove(folder: Path, written: re.Pattern) -> None:
    """Removes a folder of a sweep: every entry that the sweep wrote, then the folder if it is empty.

    Args:
      folder: the folder; nothing is done if it is a link or missing.
      written: BLOCK, STATE or UNIT.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, _FOLDER_FLAGS)
        try:
            _clear(handle, "", written)
        finally:
            os.close(handle)
        os.rmdir(folder)


def _clear(handle: int, above: str, written: re.Pattern) -> None:
    with os.scandir(handle) as scan:
        entries = list(scan)
    for entry in entries:
        name = above + entry.name
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False) and written.fullmatch(name + "/"):
                inner = os.open(entry.name, _FOLDER_FLAGS, dir_fd=handle)
                try:
                    _clear(inner, name + "/", written)
                finally:
                    os.close(inner)
                os.rmdir(entry.name, dir_fd=handle)
            elif entry.is_file(follow_symlinks=False) and written.fullmatch(name) and _is_own(entry.name, handle):
                os.unlink(entry.name, dir_fd=handle)


def _is_own(name: str, handle: int) -> bool:
    """Whether a file's content fits its name; damage of some bytes does not make it another program's."""
    if not (name.endswith((".json", ".segment")) or name.isdigit()) or name.startswith(("zarr.", "_strings.")):
        return True  # no other program uses the name
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle), "rb") as stream:
        head = stream.read(4096)
    if len(head.strip(b"\0")) <= 16:
        return True
    if name.isdigit():  # a coordinate's chunk
        return head.startswith(ZSTD_MAGIC)
    if name.endswith(".json"):
        return any(word in head for word in _JSON_WORDS)
    return sum(a != b for a, b in zip(head, SEGMENT_MAGIC)) <= 2


def is_own(file: Path) -> bool:
    """Whether the file in the place of a checkpoint or segment was written by a sweep, damaged or not."""
    handle = os.open(file.parent, _FOLDER_FLAGS)
    try:
        return stat.S_ISREG(os.lstat(file).st_mode) and _is_own(file.name, handle)
    finally:
        os.close(handle)


def own_folders(folder: Path) -> list[Path]:
    """The folders of blocks and units below `checkpoints/` or `trajectories/`, sorted."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted(
            folder / entry.name
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and (_BLOCKS.fullmatch(entry.name) or _UNITS.fullmatch(entry.name))
        )
    return []


def remove_prepared(folder: Path) -> None:
    """Removes a store that was prepared beside its place."""
    remove(folder, _TEMPLATE)


def remove_partial(path: Path) -> None:
    """Removes temporary files of a process that is gone; the caller holds the manifest's lock, as that process did."""
    if not path.is_dir():
        return
    with os.scandir(path) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if not entry.is_symlink()]
    for name, folder in names:
        if folder and _PREPARED.fullmatch(name):
            remove_prepared(path / name)
        elif not folder and re.fullmatch(_PARTIAL, name):
            (path / name).unlink(missing_ok=True)
