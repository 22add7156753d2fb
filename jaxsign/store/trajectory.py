"""trajectories/: what runs were at every step, in segments of steps; one record a run and segment, each with a CRC."""

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsign.store import files
from jaxsign.store.manifest import UnusableData, checksum, partial, write_json

FOLDER, INDEX, SUFFIX = files.TRAJECTORIES, "runs.json", ".segment"
_SEGMENTS = "[0-9]" * 9 + SUFFIX
_MAGIC = b"jaxsign\x01"
#: zstd's level: higher ones take longer than training and save little.
LEVEL = 1

Place = tuple[int, ...]


class Segment(NamedTuple):
    """A stretch of steps of the runs of one unit, as its file's header says.

    Args:
      file: its file.
      start: first step.
      stop: the step after its last update; start for a snapshot.
      keyframe: whether it holds the parameters at `start`.
      records: (offset, length, CRC-32) of every run.
    """

    file: Path
    start: int
    stop: int
    keyframe: bool
    records: list[list[int]]


def write_segment(folder: Path, start: int, stop: int, keyframe: bool, records: Sequence[bytes]) -> None:
    """Writes one segment in one move; what was there of the same start is replaced.

    Args:
      folder: the unit's folder.
      start: first step.
      stop: the step after its last update.
      keyframe: whether the records hold the parameters at `start`.
      records: of every run, compressed.
    """
    files.make_folder(folder)
    ends = np.cumsum([len(record) for record in records]).tolist()
    table = [[end - len(record), len(record), zlib.crc32(record)] for end, record in zip(ends, records)]
    head = json.dumps({"start": start, "stop": stop, "keyframe": keyframe, "records": table}).encode()
    file = folder / f"{start:09d}{SUFFIX}"
    temporary = partial(file)
    with temporary.open("xb") as stream:
        stream.write(_MAGIC + struct.pack("<II", len(head), zlib.crc32(head)) + head)
        for record in records:
            stream.write(record)
    os.replace(temporary, file)


def read_segment(file: Path) -> Segment:
    """The header of a segment.

    Raises:
      UnusableData: if it is damaged, cut off or not ours.
    """
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
            size, crc = struct.unpack("<II", stream.read(8))
            if magic != _MAGIC or size > file.stat().st_size:
                raise ValueError("its first bytes are not a segment's")
            head = stream.read(size)
        if zlib.crc32(head) != crc:
            raise ValueError("its header does not have the CRC that it was written with")
        found = json.loads(head)
        base = len(_MAGIC) + 8 + size
        table = [[base + offset, length, crc] for offset, length, crc in found["records"]]
        return Segment(file, found["start"], found["stop"], found["keyframe"], table)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise UnusableData(f"{file} is damaged or missing: {error}") from None


def read_record(segment: Segment, run: int) -> bytes:
    """The compressed record of one run.

    Raises:
      UnusableData: if it is damaged or cut off.
    """
    offset, length, crc = segment.records[run]
    try:
        with segment.file.open("rb") as stream:
            stream.seek(offset)
            record = stream.read(length)
    except OSError as error:
        raise UnusableData(f"{segment.file} cannot be read: {error}") from None
    if len(record) != length or zlib.crc32(record) != crc:
        raise UnusableData(f"{segment.file} is damaged: record {run} does not have the CRC that it was written with")
    return record


class Record:
    """One run's record, put together in a buffer that serves the next one, too: fresh memory costs more than packing.

    Examples:
      >>> record = Record()
      >>> record.numbers(np.arange(3, dtype=np.float32))
      >>> record.changes(np.ones((2, 2), np.uint8))
      >>> [x.tolist() for x in decompress(record.compressed(), [((3,), "<f4"), ((2, 2), "|u1")])]
      [[0.0, 1.0, 2.0], [[1, 1], [0, 0]]]
    """

    def __init__(self) -> None:
        self.buffer, self.size = np.empty(0, np.uint8), 0

    def _room(self, size: int) -> np.ndarray:
        if self.size + size > self.buffer.size:
            larger = np.empty(2 * (self.size + size), np.uint8)
            larger[: self.size] = self.buffer[: self.size]
            self.buffer = larger
        self.size += size
        return self.buffer[self.size - size : self.size]

    def numbers(self, array: np.ndarray) -> None:
        """Adds numbers, the bytes of equal rank of all of them together."""
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1)
        self._room(raw.size).reshape(raw.shape[::-1])[:] = raw.T

    def changes(self, steps: np.ndarray) -> None:
        """Adds what changes from step to step, mostly 0: (steps, ...) unsigned integers."""
        if steps.dtype != np.uint8:
            changed = steps.copy()
            np.bitwise_xor(steps[1:], steps[:-1], out=changed[1:])
            self.numbers(changed)
            return
        room = self._room(steps.size).reshape(steps.shape)
        room[:1] = steps[:1]
        np.bitwise_xor(steps[1:], steps[:-1], out=room[1:])

    def compressed(self) -> bytes:
        """The record by zstd; the buffer is free again."""
        from numcodecs.zstd import Zstd

        size, self.size = self.size, 0
        return Zstd(level=LEVEL).encode(self.buffer[:size])


def decompress(record: bytes, described: Sequence[tuple[Sequence[int], str]]) -> list[np.ndarray]:
    """The arrays of a record, of these shapes and dtypes; `unchanged` undoes changes.

    Raises:
      ValueError: if the record does not hold just that.
    """
    from numcodecs.zstd import Zstd

    raw = np.frombuffer(Zstd().decode(record), np.uint8)
    out, done = [], 0
    for shape, name in described:
        dtype, count = np.dtype(name), int(np.prod(shape))
        part = raw[done : done + count * dtype.itemsize].reshape(dtype.itemsize, -1)
        out.append(np.ascontiguousarray(part.T).view(dtype).reshape(shape))
        done += count * dtype.itemsize
    if done != raw.size:
        raise ValueError(f"a record holds {raw.size} bytes, expected {done}")
    return out


def unchanged(found: np.ndarray) -> np.ndarray:
    """Steps again, from what changes between them."""
    return np.bitwise_xor.accumulate(found, axis=0)


class Unit(NamedTuple):
    """Runs that were trained together, and their segments in order of steps.

    Args:
      folder: its folder.
      about: {"kind", "leaves": [[name, shape, dtype], ...], "runs": [place, ...], "start": [CRC-32, ...], "segments"}.
      segments: in order.
    """

    folder: Path
    about: dict[str, Any]
    segments: tuple[Segment, ...]

    def places(self) -> list[Place]:
        """The stored places of its runs."""
        return [tuple(place) for place in self.about["runs"]]


def begin(folder: Path, step: int, snapshots: Sequence[int] | None) -> bool:
    """Prepares a unit's folder to go on at a step: removes later segments; False if earlier ones are not all there.

    Args:
      folder: the unit's folder; no run of it counts as stored until `finish`.
      step: where training goes on.
      snapshots: the steps before it that are kept; None: all of them.
    """
    for file in (folder / INDEX, *sorted(folder.glob(_SEGMENTS))):
        if os.path.lexists(file) and not files.is_own(file):
            raise UnusableData(f"{file} is in the place of a trajectory's own file, and is none: move it away")
    (folder / INDEX).unlink(missing_ok=True)
    files.remove_partial(folder)
    reached, starts = 0, set()
    for file in sorted(folder.glob(_SEGMENTS)):
        try:
            found = read_segment(file)
            good = found.start < step and (snapshots is not None or found.start == reached) and not _damage(found)
        except UnusableData:
            good = False
        if good:
            reached = found.stop
            starts.add(found.start)
        else:
            file.unlink()
    return reached == step if snapshots is None else starts >= set(snapshots)


def finish(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes the index of a unit: from here on its runs count as stored."""
    record = {**about, "segments": [file.name for file in sorted(folder.glob(_SEGMENTS))]}
    write_json(folder / INDEX, {**record, "checksum": checksum(record)})


def units(path: Path) -> Iterator[Unit | str]:
    """Every finished unit of a results directory, or what is wrong with it."""
    for file in sorted((path / FOLDER).glob(f"*/{INDEX}")):
        try:
            about = json.loads(file.read_text())
            if about.get("checksum") != checksum(about):
                raise ValueError("its checksum is not that of its contents")
            segments = tuple(read_segment(file.parent / name) for name in about["segments"])
        except (OSError, ValueError, KeyError, AttributeError) as error:
            yield f"{file} is damaged: {error}"
        except UnusableData as error:
            yield str(error)
        else:
            yield Unit(file.parent, about, segments)


def stored(path: Path) -> tuple[set[Place], list[str]]:
    """(places of runs whose trajectory is whole, a line for all damage of runs that are whole nowhere)."""
    whole: set[Place] = set()
    lines: list[str] = []
    damaged: list[tuple[Place, str]] = []
    for unit in units(path):
        if isinstance(unit, str):
            lines.append(unit)
            continue
        bad: dict[int, str] = {}
        for segment in unit.segments:
            bad |= _damage(segment)
        places = unit.places()
        damaged += [(places[run], line) for run, line in bad.items()]
        whole |= {place for run, place in enumerate(places) if run not in bad}
    return whole, lines + [f"{line} (run {place})" for place, line in damaged if place not in whole]


def _damage(segment: Segment) -> dict[int, str]:
    """{run: what is wrong with its record} of one segment, read in one go."""
    try:
        raw = memoryview(segment.file.read_bytes())
    except OSError as error:
        return dict.fromkeys(range(len(segment.records)), f"{segment.file} cannot be read: {error}")
    return {
        run: f"{segment.file} is damaged: record {run} does not have the CRC that it was written with"
        for run, (offset, length, crc) in enumerate(segment.records)
        if zlib.crc32(raw[offset : offset + length]) != crc or offset + length > len(raw)
    }


def remove_leftovers(path: Path) -> None:
    """Removes units that never finished or whose index is damaged, once every run is whole and none is under way."""
    good = {unit.folder for unit in units(path) if isinstance(unit, Unit)}
    for folder in files.own_folders(path / FOLDER):
        if folder not in good:
            files.remove(folder, files.UNIT)


def size(path: Path) -> int:
    """Bytes of all trajectories of a results directory."""
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in (path / FOLDER).rglob("*") if file.is_file())
    return 0
