"""Which files must results.zarr have, and are they whole? A zarr store seals them and checks them at every read."""

import asyncio
import functools
import itertools
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsign.store.binding import Binding, binding, binding_at
from jaxsign.store.labels import stored_as
from jaxsign.store.manifest import ARRAYS, MANIFEST, UnusableData, unreadable

Slices = tuple[slice, ...]
MENDED = "the sweep's own command mends it"


class Variable(NamedTuple):
    """One variable of a store.

    Args:
      dims: names of its dimensions: the runs' first, then the step, then its own.
      shape: their sizes.
      dtype: of its numbers.
      fill: the value of runs that have not run.
      chunks: the chunk's extents.
      attrs: units, long_name.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Any
    chunks: tuple[int, ...]
    attrs: Mapping[str, str]

    def stored_like(self, other: "Variable") -> "Variable":
        """The variable with the dtype, fill and marks of another one."""
        if self.dtype == other.dtype:
            return self
        marks = stored_as(bool)[2]
        attrs = {name: value for name, value in self.attrs.items() if name not in marks}
        return self._replace(dtype=other.dtype, fill=other.fill, attrs=attrs)


def blocks(shape: Sequence[int], extents: Sequence[int]) -> list[Slices]:
    """The blocks of a store, in C order.

    Examples:
      >>> [tuple((s.start, s.stop) for s in box) for box in blocks((2, 3), (1, 2))]
      [((0, 1), (0, 2)), ((0, 1), (2, 3)), ((1, 2), (0, 2)), ((1, 2), (2, 3))]
    """
    ranges = [[slice(a, min(a + e, size)) for a in range(0, size, e)] for size, e in zip(shape, extents)]
    return list(itertools.product(*ranges))


def grid_of_blocks(shape: Sequence[int], extents: Sequence[int]) -> list[int]:
    """How many blocks a store has along each dimension."""
    return [-(-size // extent) for size, extent in zip(shape, extents)]


def chunk_files(
    folder: Path, variable: Variable, box: Slices, last: Mapping[int, int] | None = None
) -> Iterator[tuple[Path, Slices]]:
    """(file, index) of every chunk of one block of a variable.

    Args:
      folder: the array's folder.
      variable: its shape and chunks.
      box: the block.
      last: {dimension: size} to stop before.
    """
    places = [[s.start // c] for s, c in zip(box, variable.chunks)]
    for i in range(len(box), len(variable.shape)):
        size = (last or {}).get(i, variable.shape[i])
        places.append(list(range(-(-size // variable.chunks[i]))))
    for place in itertools.product(*places):
        index = tuple(
            slice(k * c, min((k + 1) * c, size)) for k, c, size in zip(place, variable.chunks, variable.shape)
        )
        yield folder.joinpath("c", *map(str, place)), (*box, *index[len(box) :])


class Expected:
    """The files that results.zarr must have, and their expected content.

    zarr reads a chunk without a file as the fill value, which is right only for blocks that have not run.

    Args:
      arrays: the folder of the arrays.
      files: {file that must always exist, such as a coordinate's chunk: its CRC-32}, by its name in `arrays`.
      variables: {variable with a chunk for every block: bytes of a chunk's numbers}.
      begun: for every block of the grid, whether a run of it is known to be stored.
      binding: what the chunks are bound to.
    """

    def __init__(
        self, arrays: Path, files: Mapping[str, int], variables: Mapping[str, int], begun: np.ndarray, binding: Binding
    ):
        self.arrays, self.files, self.variables = arrays, dict(files), dict(variables)
        self.begun, self.binding = begun, binding
        self.written: set[Path] = set()
        # Without the device number, which differs between machines that share a file system.
        self.identity = os.stat(arrays).st_ino

    def in_place(self) -> None:
        """Raises UnusableData if the folder is gone or was replaced."""
        try:
            status = os.stat(self.arrays)
        except OSError as error:
            raise UnusableData(
                f"{self.arrays} was moved or removed while its results were open: {error.strerror or error}"
            ) from None
        if status.st_ino != self.identity:
            raise UnusableData(f"{self.arrays} was replaced while its results were open: open them again")

    def needed(self, key: str) -> bool:
        """Whether a file of this name must exist by now: a block's status is written after its other chunks."""
        name, place = self._chunk(key)
        if name is None:
            return key in self.files
        block = place[: self.begun.ndim]
        index = tuple(map(int, block))
        known = all(i < size for i, size in zip(index, self.begun.shape)) and bool(self.begun[index])
        return known or (name != "status" and self.arrays.joinpath("status", "c", *block).exists())

    def _chunk(self, key: str) -> tuple[str | None, list[str]]:
        """(variable, place) of the chunk with this name; (None, []) of any other file."""
        name, _, place = key.partition("/c/")
        return (name, place.split("/")) if name in self.variables and place else (None, [])

    def fault(self, key: str, raw: bytes | None) -> str:
        """A line about the damage of a file, "" if it is whole; raw: its bytes, None if it is missing."""
        file = self.arrays / key
        if raw is None:
            return f"{file} is missing, although its runs are stored" if self.needed(key) else ""
        if key in self.files:
            good = zlib.crc32(raw) == self.files[key]
            return "" if good else f"{file} is damaged, or was replaced since: its CRC is not the manifest's"
        name, _ = self._chunk(key)
        reason = self.binding.chunk_fault(key, raw, self.variables[name]) if name else ""
        return f"{file} is damaged: {reason}" if reason else ""

    def content(self, key: str) -> bytes | None:
        """The bytes of a file, None if it is missing.

        Raises:
          UnusableData: if the system refuses to read it.
        """
        try:
            return (self.arrays / key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(self.arrays / key, error) from None

    def checked(self, key: str) -> bytes | None:
        """The bytes of a file, None if it is missing and need not exist.

        Raises:
          UnusableData: if it is damaged, lost or cannot be read, or the whole folder is gone.
        """
        raw = self.content(key)
        self.in_place()
        if raw is None and self.needed(key):
            raw = self.content(key)  # again: a sweep under way may just have written it
        line = self.fault(key, raw)
        if line and raw is not None and "/c/" in key and self._extended():
            line = self.fault(key, raw)
        if line:
            raise UnusableData(f"{line}; {MENDED}")
        return raw

    def _extended(self) -> bool:
        """Whether the directory was extended since it was opened; its new seals are known from then on."""
        now, known = binding_at(self.arrays.parent), self.binding.known
        extended = len(now.known) > len(known) > 0 and now.known[: len(known)] == known
        self.binding = now if extended else self.binding
        return extended

    def sealed(self, key: str, raw: bytes) -> bytes:
        """The bytes to write for a file: a chunk's are followed by its seal."""
        return raw + self.binding.seal(key, raw) if self._chunk(key)[0] else raw


def expected(
    path: Path, variables: Mapping[str, Variable], manifest: Mapping[str, Any] | None, status: np.ndarray | None = None
) -> Expected:
    """The files that a store must have, by the manifest and, if it was read before, by the status."""
    shape, extents = variables["status"].shape, variables["status"].chunks
    begun = stored_blocks(path, manifest, shape, extents)
    if status is not None:
        begun |= _begun(status, extents)
    files = manifest["crc32"] if manifest else {}
    return Expected(path / ARRAYS, files, chunk_sizes(variables), begun, binding(manifest))


def chunk_sizes(variables: Mapping[str, Variable]) -> dict[str, int]:
    """{variable: bytes of the numbers of one of its chunks}."""
    return {name: math.prod(v.chunks) * v.dtype.itemsize for name, v in variables.items()}


def _begun(status: np.ndarray, extents: Sequence[int]) -> np.ndarray:
    """For every block, whether a run of it is stored."""
    begun = [(status[box] >= 0).any() for box in blocks(status.shape, extents)]
    return np.reshape(begun, grid_of_blocks(status.shape, extents))


def stored_blocks(
    path: Path, manifest: Mapping[str, Any] | None, shape: Sequence[int], extents: Sequence[int]
) -> np.ndarray:
    """For every block of the grid, whether the manifest knows that runs of it are stored.

    Raises:
      UnusableData: if its entry does not fit the grid.
    """
    stored = np.zeros(grid_of_blocks(shape, extents), bool)
    entry = (manifest or {}).get("stored_blocks")
    if entry is None:
        return stored
    try:
        grid = [int(size) for size in entry["grid"]]
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(entry["bits"]), np.uint8), count=math.prod(grid))
        stored[tuple(slice(0, size) for size in grid)] = bits.reshape(grid)
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableData(f"{path / MANIFEST} has stored_blocks that do not fit its grid: {error}") from None
    return stored


def stored_blocks_entry(path: Path, manifest: Mapping[str, Any], status: np.ndarray) -> dict[str, Any]:
    """The manifest's entry about blocks with stored runs: the blocks it listed before, and those of the status.

    With this entry, a status that is lost later is not mistaken for runs that have never been run.
    """
    extents = manifest["chunks"]["status"]
    begun = _begun(status, extents) | stored_blocks(path, manifest, status.shape, extents)
    return {"grid": list(begun.shape), "bits": np.packbits(begun).tobytes().hex()}


def lost_chunks(path: Path, variables: Mapping[str, Variable], status: np.ndarray) -> list[str]:
    """A line for every array that lacks chunk files of stored runs."""
    extents = variables["status"].chunks
    begun = [box for box in blocks(status.shape, extents) if (status[box] >= 0).any()]
    lines = []
    for name, variable in variables.items():
        folder = path / ARRAYS / name
        present = {os.path.join(parent, name) for parent, _, names in os.walk(folder / "c") for name in names}
        expected = [str(file) for box in begun for file, _ in chunk_files(folder, variable, box)]
        lost = sum(file not in present for file in expected)
        if lost:
            lines.append(f"{folder} has {len(expected) - lost} of its {len(expected)} chunks")
    return lines


def watched(arrays: Path, expected: Expected, read_only: bool = True) -> Any:
    """The folder as a zarr store that checks what it reads by `expected`, and notes there which files it writes."""
    return _store_class()(arrays, read_only=read_only, expected=expected)


@functools.cache
def _store_class() -> type:
    """The class of `watched`, defined late: zarr takes half a second to import."""
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import LocalStore

    def part(raw: bytes, request: Any) -> bytes:
        """The requested bytes of a file, which was read and checked as a whole."""
        if isinstance(request, RangeByteRequest):
            return raw[request.start : request.end]
        if isinstance(request, OffsetByteRequest):
            return raw[request.offset :]
        return raw[max(0, len(raw) - request.suffix) :] if isinstance(request, SuffixByteRequest) else raw

    class Watched(LocalStore):
        def __init__(self, root: Path | str, *, read_only: bool = True, expected: Expected):
            super().__init__(root, read_only=read_only)
            self.expected = expected

        def with_read_only(self, read_only: bool = True) -> Any:
            return type(self)(self.root, read_only=read_only, expected=self.expected)

        def __reduce__(self) -> Any:  # pickle cannot find a class inside a function
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
