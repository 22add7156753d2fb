"""trajectories/: what runs were at every step, in segments of steps; one record a run and segment, each with a CRC."""

import contextlib
import hashlib
import itertools
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsign.store import files
from jaxsign.store.binding import Binding, binding_at, frame_size
from jaxsign.store.manifest import UnusableData, checksum, partial, to_disk, write_json
from jaxsign.store.schema import index_wrong
from jaxsign.store.watched import MENDED
from jaxsign.validation.messages import say

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


def unit_name(number: int, places: Sequence[Sequence[int]], binding: Binding) -> str:
    """The name of a unit's folder: other runs, and the same runs of another directory, have another one.

    Args:
      number: of the unit's first block.
      places: the stored places of its runs.
      binding: of the results directory.
    """
    if binding.identity is None:  # as earlier versions named it
        return f"unit-{number:06d}-{_digest(json.dumps(places))[:12]}"
    first = f"unit-{number:06d}-{_digest(binding.identity + json.dumps(places))[:8]}"
    return first + _digest(binding.identity + first)[:4]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_segment(
    folder: Path,
    start: int,
    stop: int,
    keyframe: bool,
    records: Sequence[bytes],
    words: Mapping[str, Any] | None = None,
) -> None:
    """Writes one segment in one move; what was there of the same start is replaced.

    Args:
      folder: the unit's folder.
      start: first step.
      stop: the step after its last update.
      keyframe: whether the records hold the parameters at `start`.
      records: of every run, compressed.
      words: what binds the file to its directory and unit.
    """
    files.make_folder(folder)
    ends = np.cumsum([len(record) for record in records]).tolist()
    table = [[end - len(record), len(record), zlib.crc32(record)] for end, record in zip(ends, records)]
    head = json.dumps({"start": start, "stop": stop, "keyframe": keyframe, "records": table, **(words or {})}).encode()
    file = folder / f"{start:09d}{SUFFIX}"
    temporary = partial(file)
    with temporary.open("xb") as stream:
        stream.write(_MAGIC + struct.pack("<II", len(head), zlib.crc32(head)) + head)
        for record in records:
            stream.write(record)
    os.replace(temporary, file)


def read_segment(file: Path, binding: Binding) -> Segment:
    """The header of a segment.

    Raises:
      UnusableData: if it is damaged, cut off, not ours, or of another place than its own.
    """
    try:
        there = file.stat().st_size
        with file.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
            size, crc = struct.unpack("<II", stream.read(8))
            if magic != _MAGIC or size > there:
                raise ValueError("its first bytes are not a segment's")
            head = stream.read(size)
        if zlib.crc32(head) != crc:
            raise ValueError("its header does not have the CRC that it was written with")
        found = json.loads(head)
        base = len(_MAGIC) + 8 + size
        table = [[base + offset, length, crc] for offset, length, crc in found["records"]]
        segment = Segment(file, found["start"], found["stop"], found["keyframe"], table)
        if file.name != f"{segment.start:09d}{SUFFIX}":
            raise ValueError(f"it begins with step {segment.start}")
        if fault := binding.record_fault(found, unit=file.parent.name):
            raise ValueError(fault)
    except FileNotFoundError:
        raise UnusableData(f"{file} is missing") from None
    except OSError as error:
        raise UnusableData(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise UnusableData(f"{file} is damaged: {error}") from None
    return segment


def read_record(segment: Segment, run: int) -> bytes:
    """The compressed record of one run.

    Raises:
      UnusableData: if it is damaged or cut off.
    """
    offset, length, crc = segment.records[run]
    try:
        with segment.file.open("rb") as stream:
            whole = offset + length <= os.fstat(stream.fileno()).st_size  # before memory is taken for it
            stream.seek(offset)
            record = stream.read(length) if whole else b""
    except FileNotFoundError:
        raise UnusableData(f"{segment.file} is missing; {MENDED}") from None
    except OSError as error:
        raise UnusableData(f"{segment.file} cannot be read: {error.strerror or error}") from None
    if not whole or zlib.crc32(record) != crc:
        raise UnusableData(
            f"{segment.file} is damaged: record {run} does not have the CRC that it was written with; {MENDED}"
        )
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

    wanted = sum(int(np.prod(shape)) * np.dtype(name).itemsize for shape, name in described)
    if frame_size(record) != wanted:  # before memory is taken for it
        raise ValueError(f"a record says that it holds {frame_size(record)} bytes, expected {wanted}")
    raw = np.frombuffer(Zstd().decode(record), np.uint8)
    out, done = [], 0
    for shape, name in described:
        dtype, count = np.dtype(name), int(np.prod(shape))
        part = raw[done : done + count * dtype.itemsize].reshape(dtype.itemsize, -1)
        out.append(np.ascontiguousarray(part.T).view(dtype).reshape(shape))
        done += count * dtype.itemsize
    return out


def unchanged(found: np.ndarray) -> np.ndarray:
    """Steps again, from what changes between them."""
    return np.bitwise_xor.accumulate(found, axis=0)


class Unit(NamedTuple):
    """Runs that were trained together, and their segments in order of steps.

    Args:
      folder: its folder.
      about: {"kind", "leaves": [[name, shape, dtype], ...], "runs": [place, ...], "start": [CRC-32, ...], "segments",
        "finished": seconds since 1970, "replaced": [numbers of runs that another unit holds since]}.
      segments: in order.
    """

    folder: Path
    about: dict[str, Any]
    segments: tuple[Segment, ...]

    def places(self) -> dict[int, Place]:
        """{number of a run in it: its stored place} of the runs that no other unit has replaced."""
        replaced = set(self.about.get("replaced", ()))
        return {run: tuple(place) for run, place in enumerate(self.about["runs"]) if run not in replaced}

    @property
    def finished(self) -> float:
        """When it was, in seconds since 1970; 0 of those of earlier versions."""
        return float(self.about.get("finished", 0.0))


def begin(folder: Path, step: int, snapshots: Sequence[int] | None, binding: Binding) -> bool:
    """Prepares a unit's folder to go on at a step: removes later segments; False if earlier ones are not all there.

    Args:
      folder: the unit's folder; no run of it counts as stored until `finish`.
      step: where training goes on.
      snapshots: the steps before it that are kept; None: all of them.
      binding: of the results directory.
    """
    for file in (folder / INDEX, *sorted(folder.glob(_SEGMENTS))):
        if os.path.lexists(file) and not files.is_own(file):
            raise UnusableData(f"{file} is in the place of a trajectory's own file, and is none: move it away")
    (folder / INDEX).unlink(missing_ok=True)
    files.remove_partial(folder)
    reached, starts = 0, set()
    for file in sorted(folder.glob(_SEGMENTS)):
        try:
            found = read_segment(file, binding)
            good = found.start < step and (snapshots is not None or found.start == reached) and not _damage(found)
        except UnusableData:
            good = False
        if good:
            reached = found.stop
            starts.add(found.start)
        else:
            file.unlink()
    return reached == step if snapshots is None else starts >= set(snapshots)


def flush(folder: Path) -> None:
    """Waits until a unit's segments are on the disk."""
    to_disk(folder.glob(_SEGMENTS), folder.parent.parent)


def finish(folder: Path, about: Mapping[str, Any], binding: Binding) -> None:
    """Writes the index of a unit, once its segments are on the disk: from here on its runs count as stored."""
    flush(folder)
    names = [file.name for file in sorted(folder.glob(_SEGMENTS))]
    _write_index(folder, {**about, **binding.words(unit=folder.name), "segments": names, "finished": time.time()})


def _write_index(folder: Path, about: Mapping[str, Any]) -> None:
    write_json(folder / INDEX, {**about, "checksum": checksum(about)})
    to_disk([folder / INDEX], folder)


def units(path: Path, binding: Binding | None = None) -> Iterator[Unit | str]:
    """Every finished unit of a results directory, or what is wrong with it; those of other directories are left out.

    Args:
      path: results directory.
      binding: of the directory, if it is known.
    """
    binding = binding or binding_at(path)
    for file in sorted((path / FOLDER).glob(f"*/{INDEX}")):
        try:
            about = json.loads(file.read_text())
            if about.get("checksum") != checksum(about):
                raise ValueError("its checksum is not that of its contents")
            if binding.foreign(about):
                continue
            if fault := binding.record_fault(about, unit=file.parent.name) or index_wrong(about):
                raise ValueError(fault)
            there = [segment.name for segment in sorted(file.parent.glob(_SEGMENTS))]
            if about["segments"] != there and set(about["segments"]) <= set(there):
                raise ValueError("it does not name the segments that lie beside it, in their order")
            segments = tuple(read_segment(file.parent / name, binding) for name in about["segments"])
            if fault := _fault(about, segments):
                raise ValueError(fault)
        except OSError as error:
            yield f"{file} cannot be read: {error.strerror or error}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield f"{file} is damaged: {error}"
        except UnusableData as error:
            yield str(error)
        else:
            yield Unit(file.parent, about, segments)


def _fault(about: Mapping[str, Any], segments: Sequence[Segment]) -> str:
    """What is wrong with whole segments beside each other, "" if nothing is."""
    for segment in segments:
        if len(segment.records) != len(about["runs"]):
            return f"{segment.file.name} has {len(segment.records)} runs, not {len(about['runs'])}"
    if about["kind"] in ("signs", "features"):  # which keep every step
        for before, after in itertools.pairwise(segments):
            if before.stop != after.start:
                return f"{before.file.name} ends at step {before.stop}, and {after.file.name} follows"
    return ""


def whole(unit: Unit, run: int) -> str:
    """What is wrong with the records of one run, "" if all are whole."""
    try:
        for segment in unit.segments:
            read_record(segment, run)
    except UnusableData as error:
        return str(error)
    return ""


def stored(path: Path) -> tuple[set[Place], list[str]]:
    """(places of runs whose trajectory is whole, a line for all damage of runs that are whole nowhere)."""
    good: set[Place] = set()
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
        damaged += [(places[run], line) for run, line in bad.items() if run in places]
        good |= {place for run, place in places.items() if run not in bad}
    return good, lines + [f"{line} (run {place})" for place, line in damaged if place not in good]


def _damage(segment: Segment) -> dict[int, str]:
    """{run: what is wrong with its record} of one segment, read in one go."""
    try:
        raw = memoryview(segment.file.read_bytes())
    except OSError as error:
        line = f"{segment.file} cannot be read: {error.strerror or error}"
        return dict.fromkeys(range(len(segment.records)), line)
    return {
        run: f"{segment.file} is damaged: record {run} does not have the CRC that it was written with"
        for run, (offset, length, crc) in enumerate(segment.records)
        if zlib.crc32(raw[offset : offset + length]) != crc or offset + length > len(raw)
    }


def ours(folder: Path, binding: Binding) -> bool:
    """Whether a folder in trajectories/ is a unit of this results directory, finished or not, damaged or not.

    What can be read of its files must not be of another directory. Where nothing can be read, the name tells: its last
    letters follow from the others and the directory's id.
    """
    name = folder.name
    if not name.startswith("unit-") or folder.is_symlink():
        return False
    said = [found for file in [folder / INDEX, *sorted(folder.glob(_SEGMENTS))] if (found := _said(file))]
    if any(map(binding.foreign, said)):
        return False
    return bool(said) or not binding.sealed or any(name[-4:] == _digest(own + name[:-4])[:4] for own in binding.known)


def _said(file: Path) -> dict[str, Any] | None:
    """The record that a file of a unit begins with, None if it cannot be read."""
    try:
        if file.name == INDEX:
            found = json.loads(file.read_text())
        else:
            with file.open("rb") as stream:
                head = stream.read(len(_MAGIC) + 8)
                size, _ = struct.unpack("<II", head[len(_MAGIC) :])
                found = json.loads(stream.read(min(size, file.stat().st_size)))
    except (OSError, ValueError, struct.error):
        return None
    return found if isinstance(found, dict) else None


def remove_leftovers(path: Path) -> None:
    """Puts units away that never finished, are damaged or were replaced, once every run is whole and none under way.

    Runs that a later unit holds as a whole are struck from the index of an earlier one, whose folder goes with the last
    of them. Units of other results directories stay, and are named.
    """
    binding = binding_at(path)
    found = sorted(
        (unit for unit in units(path, binding) if isinstance(unit, Unit)), key=lambda unit: unit.finished, reverse=True
    )
    holders: dict[Place, list[Unit]] = {}
    for unit in found:
        for place in unit.places().values():
            holders.setdefault(place, []).append(unit)
    keeper = {place: own[0] for place, own in holders.items()}
    for place, own in holders.items():
        if len(own) > 1:  # the newest whole one
            runs = [next(run for run, at in unit.places().items() if at == place) for unit in own]
            keeper[place] = next((unit for unit, run in zip(own, runs) if not whole(unit, run)), own[0])
    good = set()
    for unit in found:
        struck = [run for run, place in unit.places().items() if keeper[place] is not unit]
        if len(struck) < len(unit.places()):
            good.add(unit.folder)
        if struck and unit.folder in good:
            replaced = sorted([*unit.about.get("replaced", ()), *struck])
            _write_index(unit.folder, {**_without_checksum(unit.about), "replaced": replaced})
    for folder in files.own_folders(path / FOLDER):
        if folder not in good:
            if ours(folder, binding):
                files.remove(folder, files.UNIT)
            else:
                say(f"{folder} is not of these results and stays as it is")


def _without_checksum(about: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name != "checksum"}


def size(path: Path) -> int:
    """Bytes of all trajectories of a results directory."""
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in (path / FOLDER).rglob("*") if file.is_file())
    return 0
