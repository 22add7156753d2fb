"""What does a results directory hold, and how was it made: manifest.json, kept twice and checked when it is read."""

import contextlib
import errno
import json
import os
import secrets
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxsign.store import schema
from jaxsign.validation.messages import say

#: The folder of the arrays, and the file that describes them.
ARRAYS = "results.zarr"
MANIFEST = "manifest.json"
#: A second copy of the manifest: nothing else can be read without one.
COPY = "manifest.copy.json"
#: Maximum bytes of a manifest; one with a million seeds takes a tenth of it.
BYTES = 2**28
#: Version of the files' layout, and the earliest one that is read. A newer version is refused.
FORMAT, EARLIEST = 2, 1


class UnusableData(Exception):
    """Data on disk that is damaged or not ours; the message names the file."""


class NewerFormat(UnusableData):
    """An undamaged manifest of a newer version: its copy is of that version, too."""


def unreadable(file: Path, error: OSError) -> UnusableData:
    """The error that a file which the system refuses to read ends in; the file need not be damaged."""
    return UnusableData(f"{file} cannot be read: {error.strerror or error}")


def has_manifest(path: Path) -> bool:
    """Whether a directory has one of the manifest's two files, damaged or not.

    The copy alone does not count once the arrays are gone: somebody has cleared the directory.
    """
    return os.path.lexists(path / MANIFEST) or (os.path.lexists(path / COPY) and os.path.lexists(path / ARRAYS))


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a results directory, None if there is none.

    The manifest is kept twice. If one file is lost or damaged, the other one is read and stderr says so.

    Args:
      path: a results directory.

    Returns:
      The manifest as a dict.

    Raises:
      UnusableData: if neither file is readable, they contradict each other, or a newer version wrote them.
    """
    manifest, damage = inspect_manifest(path)
    if MANIFEST in damage and manifest is not None:
        say(f"{damage[MANIFEST]}: its copy {COPY} is taken")
    return manifest


def inspect_manifest(path: Path) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """The manifest of a results directory, and the damage of its two files.

    Returns:
      The manifest, None if there is none, and {name of a file that is lost or damaged: a line that says so}.

    Raises:
      UnusableData: as in `read_manifest`.
    """
    if not has_manifest(path):
        return None, {}
    manifests: dict[str, dict[str, Any]] = {}
    damage: dict[str, str] = {}
    raw: dict[str, bytes] = {}
    for name in (MANIFEST, COPY):
        try:
            if (content := _content(path / name)) is not None:
                raw[name] = content
                same = name == COPY and MANIFEST in manifests and content == raw[MANIFEST]
                manifests[name] = manifests[MANIFEST] if same else _parsed(path / name, content)
        except NewerFormat:
            raise
        except UnusableData as error:
            damage[name] = str(error)
    if not manifests and damage:
        first = next(iter(damage.values()))
        raise UnusableData(f"{first}; no whole copy is left: put {MANIFEST} back from a backup, or give another out")
    if len(manifests) == 2:
        _check_equal(path, manifests[MANIFEST], manifests[COPY])
    elif COPY in manifests:
        damage.setdefault(MANIFEST, f"{path / MANIFEST} is missing")
    elif MANIFEST in manifests and "revision" in manifests[MANIFEST]:  # earlier versions wrote no copy
        damage.setdefault(COPY, f"{path / COPY} is missing")
    return manifests.get(MANIFEST, manifests.get(COPY)), damage


def _check_equal(path: Path, manifest: Mapping[str, Any], copy: Mapping[str, Any]) -> None:
    """Checks that the two files agree; they may differ by one revision while, or after, a process replaces them.

    Raises:
      UnusableData: naming what differs.
    """
    if manifest is copy or (manifest.get("revision") != copy.get("revision") and manifest.get("id") == copy.get("id")):
        return
    for name in dict.fromkeys([*manifest, *copy]):
        if name != "checksum" and json.dumps(manifest.get(name)) != json.dumps(copy.get(name)):
            raise UnusableData(
                f"{path / MANIFEST} and {COPY} differ in {name!r}: one of them was changed; move that one away, and "
                "the other one is taken"
            )


def _content(file: Path) -> bytes | None:
    """The bytes of one of the two files; None if there is none.

    Raises:
      UnusableData: if they cannot be read.
    """
    if not os.path.lexists(file):
        return None
    if not stat.S_ISREG(os.lstat(file).st_mode):  # reading a pipe would wait, and a link leads to another file
        raise UnusableData(f"{file} is not a readable manifest: it is a link, pipe or device")
    try:
        with file.open("rb") as stream:
            content = stream.read(BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableData(f"{file} is not a readable manifest: {error.strerror or error}") from None
    if len(content) > BYTES:
        raise UnusableData(f"{file} is not a readable manifest: it has more than {BYTES} bytes")
    return content


def _parsed(file: Path, content: bytes) -> dict[str, Any]:
    """The manifest that a file's bytes hold.

    Raises:
      UnusableData: if it is not readable JSON, was changed by hand, or was written by a newer version.
    """
    try:
        manifest = json.loads(content.decode())
        whole = isinstance(manifest, dict) and manifest.get("checksum") == checksum(manifest)
    except ValueError as error:
        raise UnusableData(f"{file} is not a readable manifest: {' '.join(str(error).split())}") from None
    except (RecursionError, MemoryError):
        raise UnusableData(f"{file} is not a readable manifest: its entries are nested too deeply") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("definition"), dict):
        raise UnusableData(f"{file} is not a manifest of jaxsign: it has no definition")
    version = manifest.get("format", 0)
    if type(version) is not int or version > FORMAT:
        raise (NewerFormat if whole else UnusableData)(
            f"{file} has format {version!r}, from a newer jaxsign; this one reads up to format {FORMAT}: upgrade it"
        )
    if version < EARLIEST:
        raise UnusableData(f"{file} has format {version}; this jaxsign reads formats {EARLIEST} to {FORMAT}")
    if not whole:
        raise UnusableData(f"{file} is damaged or was changed by hand: its checksum is not that of its contents")
    if reason := schema.wrong(manifest):
        raise UnusableData(f"{file} is damaged or was changed by hand: {reason}")
    return manifest


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the manifest by this one, with its format and checksum; returns it.

    Each of the two files is replaced in one atomic rename, the copy first. If a process ends between the two, the
    manifest is still the previous one, and the copy has a later revision.

    Args:
      path: results directory; the caller holds its manifest's lock.
      manifest: the new content.
    """
    complete = {**manifest, "format": FORMAT, "revision": manifest.get("revision", 0) + 1}
    complete["checksum"] = checksum(complete)
    for name in (COPY, MANIFEST):
        write_json(path / name, complete)
    return complete


def restore(path: Path) -> None:
    """Writes the manifest's two files anew if one of them is lost or damaged; the caller holds the manifest's lock.

    Raises:
      UnusableData: as in `read_manifest`, or if a file cannot be replaced.
    """
    manifest, damage = inspect_manifest(path)
    if not damage or manifest is None:
        return
    try:
        write_manifest(path, manifest)
    except OSError as error:
        line = next(iter(damage.values()))
        raise UnusableData(f"{line}, and cannot be written anew: {error.strerror or error}") from None


def check_fit(manifest: Mapping[str, Any], arrays: Path) -> None:
    """Checks that a manifest and the arrays beside it do not contradict one another; the metadata must be undamaged.

    Args:
      manifest: as it was read.
      arrays: the store's folder.

    Raises:
      UnusableData: naming the contradiction.
    """
    try:
        reason = schema.contradiction(manifest, arrays)
    except Exception as error:  # zarr and its codecs raise many kinds about bytes that were changed
        raise UnusableData(f"{arrays} cannot be read: {' '.join(str(error).split())}") from None
    if reason:
        raise UnusableData(
            f"{arrays.parent / MANIFEST} does not belong to the arrays beside it: {reason}; put back what was changed"
        )


def begun_anew(stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """The manifest's entries "id", "epoch" and "lineage" of a directory that is begun, extended or defined anew.

    The "id" is drawn when a directory is begun and stays: two directories of one definition differ by it. The "epoch"
    counts changes that a process which has the directory open does not know of: an extension, an accepted change of
    code. Each epoch adds a random word to the "lineage", which begins with the id: two copies of a directory that are
    extended apart do not know each other's words.

    Args:
      stored: the manifest so far, None for a new directory.
    """
    stored = stored or {}
    identity = stored.get("id") or secrets.token_hex(16)
    lineage = [*stored.get("lineage", [identity]), secrets.token_hex(16)] if "id" in stored else [identity]
    return {"id": identity, "epoch": stored.get("epoch", 0) + 1, "lineage": lineage}


def to_disk(files: Iterable[Path], below: Path) -> None:
    """Waits until files and the folders that lead to them are on the disk.

    All are synced at once, since a file system then writes its journal once for all of them.

    Args:
      files: files that have been written.
      below: a folder above all of them that existed before.
    """
    paths = {below}
    for path in files:
        while path not in paths:
            paths.add(path)
            path = path.parent
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(_sync, paths))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def checksum(record: Mapping[str, Any]) -> int:
    """CRC-32 of a record's JSON as it is read back, without its entry "checksum"; the order of entries counts.

    Examples:
      >>> checksum({"a": 1}) == checksum({"checksum": 5, "a": 1})
      True
    """
    return zlib.crc32(json.dumps(json.loads(json.dumps(_unchecked(record))), separators=(",", ":")).encode())


def _unchecked(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "checksum"}


@contextlib.contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Yields a path beside a file; when the block ends, the file written there takes the file's place in one move.

    Nobody can guess the path's name, and put a link to another file there. Open it with "x", which follows no link.
    After an error the file stays as it was, and nothing is left beside it.
    """
    # The CRC in place of the name: the result is never too long for the file system.
    temporary = file.with_name(f"{zlib.crc32(os.fsencode(file.name)):08x}.{secrets.token_hex(8)}.partial")
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Writes a small JSON file: readers see the old content or the new one, never half of it."""
    with replace_file(file) as temporary, temporary.open("x", encoding="utf-8") as stream:
        stream.write(json.dumps(record, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def write_checked_json(file: Path, record: Mapping[str, Any]) -> None:
    """Writes a small JSON file whose last entry is the `checksum` of the others."""
    rest = _unchecked(record)
    write_json(file, {**rest, "checksum": checksum(rest)})
