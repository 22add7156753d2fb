"""manifest.json: what a results directory holds and how it was made; read checked, replaced in one move."""

import json
import os
import secrets
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
#: Version of the files' layout. A newer one is refused.
FORMAT = 1


class UnusableData(Exception):
    """Data on disk that is damaged or not ours; the message names the file."""


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a results directory, None if there is none.

    Args:
      path: a results directory.

    Returns:
      The manifest as a dict.

    Raises:
      UnusableData: if it is not readable JSON, was changed by hand, or was written by a newer version.
    """
    file = path / MANIFEST
    if not os.path.lexists(file):
        return None
    if not stat.S_ISREG(os.lstat(file).st_mode):  # a pipe would be waited for, a link leads to another file
        raise UnusableData(f"{file} is a link, pipe or device, and no sweep makes one: move it away")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnusableData(f"{file} is not a readable manifest: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("definition"), dict):
        raise UnusableData(f"{file} is not a manifest of jaxsign: it has no definition")
    version = manifest.get("format", 0)
    if not isinstance(version, int) or version > FORMAT:
        raise UnusableData(
            f"{file} has format {version!r}, from a newer jaxsign; this one reads up to format {FORMAT}: upgrade it"
        )
    if version < FORMAT:
        raise UnusableData(f"{file} has format {version}, from an older jaxsign; this one writes format {FORMAT}")
    if manifest.get("checksum") != checksum(manifest):
        raise UnusableData(f"{file} is damaged or was changed by hand: its checksum is not that of its contents")
    return manifest


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the manifest by this one, with its format and checksum, in one atomic rename; returns it."""
    complete = {**manifest, "format": FORMAT}
    complete["checksum"] = checksum(complete)
    write_json(path / MANIFEST, complete)
    return complete


def begun_anew(stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries that say which directory this is, and how often what it holds was defined anew.

    The "id" is drawn when a directory is begun and stays: two directories of one definition differ by it. The "epoch"
    counts what a process that has opened the directory before would not know of: an extension, an accepted change of
    code, arrays that were mended.

    Args:
      stored: the manifest so far, None for a new directory.
    """
    stored = stored or {}
    return {"id": stored.get("id") or secrets.token_hex(16), "epoch": stored.get("epoch", 0) + 1}


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
