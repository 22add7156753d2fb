"""results.zarr as a store of zarr: chunks are sealed when written, checked when read, and an error where lost."""

import asyncio
import functools
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxsign.store.binding import Binding
from jaxsign.store.manifest import UnusableData

MENDED = "the sweep's own command mends it"


class Expected:
    """Which files of results.zarr there must be, and what they must hold.

    zarr reads a chunk without a file as the fill value. That is right for blocks that have not run, and for them alone.

    Args:
      arrays: the folder of the arrays.
      files: {file that there always must be, such as a coordinate's chunk: its CRC-32}, by its name in `arrays`.
      variables: {variable with a chunk for every block: bytes of the numbers of a chunk}.
      begun: for every block of the grid, whether some run of it is known to be stored.
      binding: what the chunks are bound to.
    """

    def __init__(
        self, arrays: Path, files: Mapping[str, int], variables: Mapping[str, int], begun: np.ndarray, binding: Binding
    ):
        self.arrays, self.files, self.variables = arrays, dict(files), dict(variables)
        self.begun, self.binding = begun, binding
        self.written: set[Path] = set()
        # Not the device: one file system has other numbers on other machines.
        self.identity = os.stat(arrays).st_ino

    def in_place(self) -> None:
        """Raises UnusableData if the folder is gone, or another one is in its place."""
        try:
            here = os.stat(self.arrays)
        except OSError as error:
            raise UnusableData(
                f"{self.arrays} was moved or removed while its results were open: {error.strerror or error}"
            ) from None
        if here.st_ino != self.identity:
            raise UnusableData(f"{self.arrays} was replaced while its results were open: open them again")

    def needed(self, key: str) -> bool:
        """Whether there must be a file of this name by now: the status of a block is written after all the rest."""
        name, _, place = key.partition("/c/")
        if name not in self.variables or not place:
            return key in self.files
        block = place.split("/")[: self.begun.ndim]
        index = tuple(map(int, block))
        known = all(i < size for i, size in zip(index, self.begun.shape)) and bool(self.begun[index])
        return known or (name != "status" and self.arrays.joinpath("status", "c", *block).exists())

    def fault(self, key: str, raw: bytes | None) -> str:
        """What is wrong with a file, "" if nothing is; raw: its bytes, None without a file."""
        file = self.arrays / key
        if raw is None:
            return f"{file} is missing, although its runs are stored" if self.needed(key) else ""
        if key in self.files:
            return "" if zlib.crc32(raw) == self.files[key] else f"{file} is damaged: its CRC is not the manifest's"
        size = self.variables.get(key.partition("/c/")[0]) if "/c/" in key else None
        reason = self.binding.chunk_fault(key, raw, size) if size is not None else ""
        return f"{file} is damaged: {reason}" if reason else ""

    def content(self, key: str) -> bytes | None:
        """The bytes of a file, None if there is none.

        Raises:
          UnusableData: if the system refuses to read it: it need not be damaged.
        """
        try:
            return (self.arrays / key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise UnusableData(f"{self.arrays / key} cannot be read: {error.strerror or error}") from None

    def checked(self, key: str) -> bytes | None:
        """The bytes of a file, None if there is none and need not be.

        Raises:
          UnusableData: if it is damaged, lost or cannot be read, or the whole folder is no longer there.
        """
        raw = self.content(key)
        self.in_place()
        if raw is None and self.needed(key):
            raw = self.content(key)  # once more: a sweep under way may just have written it
        line = self.fault(key, raw)
        if line:
            raise UnusableData(f"{line}; {MENDED}")
        return raw

    def sealed(self, key: str, raw: bytes) -> bytes:
        """The bytes to write for a file."""
        name, _, place = key.partition("/c/")
        return raw + self.binding.seal(key, raw) if name in self.variables and place else raw


def watched(arrays: Path, expected: Expected, read_only: bool = True) -> Any:
    """The folder as a zarr store that raises UnusableData where `expected` does; what it writes, it notes there."""
    return _store_class()(arrays, read_only=read_only, expected=expected)


@functools.cache
def _store_class() -> type:
    """The class, made late: zarr takes half a second to import."""
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import LocalStore

    def part(raw: bytes, asked: Any) -> bytes:
        """The bytes asked for, of a file that was read and checked as a whole."""
        if isinstance(asked, RangeByteRequest):
            return raw[asked.start : asked.end]
        if isinstance(asked, OffsetByteRequest):
            return raw[asked.offset :]
        return raw[max(0, len(raw) - asked.suffix) :] if isinstance(asked, SuffixByteRequest) else raw

    class Watched(LocalStore):
        def __init__(self, root: Path | str, *, read_only: bool = True, expected: Expected):
            super().__init__(root, read_only=read_only)
            self.expected = expected

        def with_read_only(self, read_only: bool = True) -> Any:
            return type(self)(self.root, read_only=read_only, expected=self.expected)

        def __reduce__(self) -> Any:  # a class inside a function has no name to be pickled by
            return watched, (self.root, self.expected, self.read_only)

        def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
            raw = self.expected.checked(key)
            buffer = (prototype or default_buffer_prototype()).buffer
            return None if raw is None else buffer.from_bytes(part(raw, byte_range))

        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            return await asyncio.to_thread(self.get_sync, key, prototype=prototype, byte_range=byte_range)

        async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
            return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

        def set_sync(self, key: str, value: Any) -> None:
            super().set_sync(key, type(value).from_bytes(self.expected.sealed(key, value.to_bytes())))
            self.expected.written.add(self.root / key)

        async def set(self, key: str, value: Any) -> None:
            await super().set(key, type(value).from_bytes(self.expected.sealed(key, value.to_bytes())))
            self.expected.written.add(self.root / key)

    return Watched
