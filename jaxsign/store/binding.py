"""Are bytes in the place they were written for? Chunks carry a seal; other files name their directory and place."""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxsign.store.manifest import UnusableData, inspect_manifest

#: A seal is a frame that zstd, and so every reader of Zarr, skips: magic, length, this word and a digest.
_SKIPPABLE, _WORD, _DIGEST = 0x184D2A53, b"jaxsign1", 16
_HEAD = struct.pack("<II", _SKIPPABLE, len(_WORD) + _DIGEST) + _WORD
#: The first bytes of a zstd frame.
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Binding(NamedTuple):
    """The results directory that files are bound to.

    Args:
      identity: the last word of the manifest's lineage; None for a directory of a version without lineages.
      sealed: whether all of its files are bound, which depends on the version that began it; None if the manifest
        cannot be read.
      known: all words of the lineage, the directory's id first.
    """

    identity: str | None
    sealed: bool | None
    known: tuple[str, ...] = ()

    def seal(self, key: str, raw: bytes) -> bytes:
        """The bytes to write after a chunk's own; none in a directory without an identity.

        Args:
          key: the chunk's name, such as "train_loss/c/0/1/0".
          raw: its bytes.
        """
        return _HEAD + _digest(self.identity, key, _content(raw)) if self.identity else b""

    def chunk_fault(self, key: str, raw: bytes, size: int) -> str:
        """Why bytes are not the ones that were written as this chunk, "" if they are.

        Args:
          key: the chunk's name.
          raw: the whole file, with its seal.
          size: bytes of the numbers that it holds.
        """
        body, seal = raw[: -len(_HEAD) - _DIGEST], raw[-len(_HEAD) - _DIGEST :]
        if seal.startswith(_HEAD):
            content = _content(body)
            known = [_digest(identity, key, content) for identity in self.known]
            if self.sealed is not None and seal[len(_HEAD) :] not in known:
                return "its seal does not fit: the bytes are damaged, or of another place or directory"
            if self.sealed is not None:
                return _size_fault(body, size)
        elif self.sealed:
            return "it has no seal: the end is cut off, or another program wrote it"
        return _size_fault(raw, size) or _decoding_fault(raw)

    def words(self, **place: Any) -> dict[str, Any]:
        """The entries of a JSON record that bind it to this directory and a place in it."""
        return {"directory": self.identity, **place} if self.identity else {}

    def record_fault(self, record: Mapping[str, Any], **place: Any) -> str:
        """Why a JSON record was not written for this place, "" if it was."""
        if self.sealed is None:
            return ""
        for name in ("directory", *place):
            values = self.known if name == "directory" else (place[name],)
            if name not in record:
                if self.sealed:
                    return f"it does not say which {name} it is of"
            elif record[name] not in values:
                return f"it is of another {name}: {record[name]!r}, not {', '.join(map(repr, values))}"
        return ""

    def foreign(self, record: Mapping[str, Any]) -> bool:
        """Whether a JSON record names another results directory, or none although it must."""
        if self.sealed is None:
            return False
        return record["directory"] not in self.known if "directory" in record else self.sealed


def _content(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=32).digest()


def _digest(identity: str, key: str, content: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + b"\n" + content, digest_size=_DIGEST, key=identity.encode()).digest()


def binding(manifest: Mapping[str, Any] | None) -> Binding:
    """The binding of the directory with this manifest; None if the manifest cannot be read."""
    if manifest is None:
        return Binding(None, None)
    identity = manifest.get("id")
    known = tuple(manifest.get("lineage", [identity] if identity else []))
    return Binding(known[-1] if known else None, manifest.get("sealed", False), known)


def binding_at(path: Path) -> Binding:
    """The binding of a results directory, even if its manifest cannot be read: `verify` reads as much as it can."""
    try:
        return binding(inspect_manifest(path)[0])
    except UnusableData:
        return binding(None)


def frame_size(raw: bytes) -> int | None:
    """The size of a zstd frame's content according to its header; None without one, or if it is no such frame.

    Examples:
      >>> from numcodecs.zstd import Zstd
      >>> frame_size(Zstd().encode(bytes(70_000))), frame_size(b"something else")
      (70000, None)
    """
    if len(raw) < 6 or raw[:4] != ZSTD_MAGIC:
        return None
    flags = raw[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    place = 6 - single + (0, 1, 2, 4)[flags & 3]
    if not width or len(raw) < place + width:
        return None
    return int.from_bytes(raw[place : place + width], "little") + 256 * (width == 2)


def _size_fault(raw: bytes, size: int) -> str:
    content = frame_size(raw)
    return "" if content == size else f"it says that it holds {content} bytes, not {size}"


def _decoding_fault(raw: bytes) -> str:
    """Why a frame without a seal cannot be read, "" if it can: only its own checksum guards it."""
    from numcodecs.zstd import Zstd

    if not raw[4] >> 2 & 1:
        return "it has no checksum"
    try:
        Zstd().decode(raw)
    except RuntimeError as error:
        return " ".join(str(error).split())
    return ""
