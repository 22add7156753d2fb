"""manifest.json: what a results directory holds and how it was made; kept twice, read checked, replaced in one move."""

import errno
import json
import os
import secrets
import stat
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxsign.store import schema
from jaxsign.validation.messages import say

#: The arrays of results, and what they are.
ARRAYS = "results.zarr"
MANIFEST = "manifest.json"
#: The same again, beside it: the one file without which nothing else could be read.
COPY = "manifest.copy.json"
#: Bytes of a manifest at most; those of a million seeds take a tenth.
BYTES = 2**28
#: Version of the files' layout. A newer one is refused; those of the earliest on are read, and written as this one.
FORMAT, EARLIEST = 2, 1


class UnusableData(Exception):
    """Data on disk that is damaged or not ours; the message names the file."""


class NewerFormat(UnusableData):
    """A whole manifest of a newer version, which its copy does not stand in for."""


def has_manifest(path: Path) -> bool:
    """Whether a directory has a manifest, of which there are two files, in whatever state.

    The copy alone speaks of nothing once the arrays are gone, too: somebody has cleared the directory.
    """
    return os.path.lexists(path / MANIFEST) or (os.path.lexists(path / COPY) and os.path.lexists(path / ARRAYS))


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a results directory, None if there is none.

    It is kept twice. Where one file is lost or damaged, the other one is taken, which is said on stderr.

    Args:
      path: a results directory.

    Returns:
      The manifest as a dict.

    Raises:
      UnusableData: if neither file is readable, they contradict each other, or a newer version wrote them.
    """
    manifest, damage = examined(path)
    if MANIFEST in damage and manifest is not None:
        say(f"{damage[MANIFEST]}: its copy {COPY} is taken")
    return manifest


def examined(path: Path) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """(the manifest of a results directory, what is wrong with the one of its two files that is lost or damaged).

    Returns:
      The manifest, None if there is none, and {name of the file: a line that says so}.

    Raises:
      UnusableData: as in `read_manifest`.
    """
    if not has_manifest(path):
        return None, {}
    found: dict[str, dict[str, Any]] = {}
    damage: dict[str, str] = {}
    raw: dict[str, bytes] = {}
    for name in (MANIFEST, COPY):
        try:
            if (content := _content(path / name)) is not None:
                raw[name] = content
                same = name == COPY and MANIFEST in found and content == raw[MANIFEST]
                found[name] = found[MANIFEST] if same else _checked(path / name, content)
        except NewerFormat:
            raise
        except UnusableData as error:
            damage[name] = str(error)
    if not found and damage:
        first = next(iter(damage.values()))
        raise UnusableData(f"{first}; no whole copy is left: put {MANIFEST} back from a backup, or give another out")
    if len(found) == 2:
        _check_equal(path, found[MANIFEST], found[COPY])
    elif COPY in found:
        damage.setdefault(MANIFEST, f"{path / MANIFEST} is missing")
    elif MANIFEST in found and "revision" in found[MANIFEST]:  # earlier versions wrote no copy
        damage.setdefault(COPY, f"{path / COPY} is missing")
    return found.get(MANIFEST, found.get(COPY)), damage


def _check_equal(path: Path, manifest: Mapping[str, Any], copy: Mapping[str, Any]) -> None:
    """Checks that the two files agree, unless a process ended, or is, between writing the one and the other.

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
    if not stat.S_ISREG(os.lstat(file).st_mode):  # a pipe would be waited for, a link leads to another file
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


def _checked(file: Path, content: bytes) -> dict[str, Any]:
    """The manifest that the bytes of a file hold.

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

    Each of its two files is replaced in one atomic rename, the copy first: where a process ends between the two, the
    manifest is still the one before, and the copy has a later revision.

    Args:
      path: results directory, whose manifest's lock the caller holds.
      manifest: what it is to say.
    """
    complete = {**manifest, "format": FORMAT, "revision": manifest.get("revision", 0) + 1}
    complete["checksum"] = checksum(complete)
    for name in (COPY, MANIFEST):
        write_json(path / name, complete)
    return complete


def restore(path: Path) -> None:
    """Writes the manifest's two files anew if one of them is lost or damaged; the caller holds the manifest's lock.

    Raises:
      UnusableData: as in `read_manifest`, or if what is in a file's place cannot be replaced.
    """
    manifest, damage = examined(path)
    if not damage or manifest is None:
        return
    try:
        write_manifest(path, manifest)
    except OSError as error:
        line = next(iter(damage.values()))
        raise UnusableData(f"{line}, and cannot be written anew: {error.strerror or error}") from None


def check_fit(manifest: Mapping[str, Any], arrays: Path) -> None:
    """Checks that a manifest and the arrays beside it bear one another out; the metadata must be undamaged.

    Args:
      manifest: as it was read.
      arrays: the store's folder.

    Raises:
      UnusableData: naming what contradicts what.
    """
    try:
        reason = schema.contradiction(manifest, arrays)
    except Exception as error:  # whatever zarr and its codecs raise about bytes that are not what was written
        raise UnusableData(f"{arrays} cannot be read: {' '.join(str(error).split())}") from None
    if reason:
        raise UnusableData(
            f"{arrays.parent / MANIFEST} does not belong to the arrays beside it: {reason}; put back what was changed"
        )


def begun_anew(stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries that say which directory this is, and how often what it holds was defined anew.

    The "id" is drawn when a directory is begun and stays: two directories of one definition differ by it. The "epoch"
    counts what a process that has opened the directory before would not know of: an extension, an accepted change of
    code. Each epoch adds a word of its own to the "lineage", which begins with the id: two copies of a directory that
    were extended apart do not know each other's.

    Args:
      stored: the manifest so far, None for a new directory.
    """
    stored = stored or {}
    own = stored.get("id") or secrets.token_hex(16)
    lineage = [*stored.get("lineage", [own]), secrets.token_hex(16)] if "id" in stored else [own]
    return {"id": own, "epoch": stored.get("epoch", 0) + 1, "lineage": lineage}


def to_disk(files: Iterable[Path], below: Path) -> None:
    """Waits until files are on the disk, with the folders that lead to them: from then on, others may rely on them.

    All are asked for at once, since a file system then writes its journal once for all of them.

    Args:
      files: what has been written.
      below: a folder above all of them that was there before.
    """
    asked = {below}
    for file in files:
        path = file
        while path not in asked:
            asked.add(path)
            path = path.parent
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(_synced, asked))


def _synced(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot do so with a folder
            raise
    finally:
        os.close(handle)


def checksum(record: Mapping[str, Any]) -> int:
    """CRC-32 of a record's JSON as it is read back, its own "checksum" left out; the order of entries counts.

    Examples:
      >>> checksum({"a": 1}) == checksum({"checksum": 5, "a": 1})
      True
    """
    rest = {name: value for name, value in record.items() if name != "checksum"}
    return zlib.crc32(json.dumps(json.loads(json.dumps(rest)), separators=(",", ":")).encode())


def partial(file: Path) -> Path:
    """Where a file is prepared before it is moved to its place: beside it, under a name that is never too long.

    Nobody can guess the name, and put a link to another file there; open it with "x", which follows none.
    """
    return file.with_name(f"{zlib.crc32(os.fsencode(file.name)):08x}.{secrets.token_hex(8)}.partial")


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Writes a small JSON file: the old one or the new one is there, never half of it."""
    temporary = partial(file)
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(json.dumps(record, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
