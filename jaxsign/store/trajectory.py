"""How are trajectories stored: units of runs, in segments of steps, with one record and its CRC for every run?"""

import contextlib
import hashlib
import itertools
import json
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsign.store import files
from jaxsign.store.binding import Binding, binding_at, frame_size
from jaxsign.store.manifest import UnusableData, checksum, replace_file, to_disk, unreadable, write_checked_json
from jaxsign.store.schema import index_wrong
from jaxsign.store.watched import MENDED
from jaxsign.validation.messages import say

FOLDER, INDEX, SUFFIX = files.TRAJECTORIES, "runs.json", ".segment"
_SEGMENTS = "[0-9]" * 9 + SUFFIX
#: Kinds of trajectories that keep every step.
EVERY_STEP = ("signs", "features")
#: zstd's level: higher ones take longer than training and save little.
LEVEL = 1
_LENGTH_AND_CRC = struct.Struct("<II")

Place = tuple[int, ...]


class Segment(NamedTuple):
    """Consecutive steps of the runs of one unit, as the header of its file describes them.

    Args:
      file: its file.
      start: first step.
      stop: the step after its last update; equal to start for a snapshot.
      keyframe: whether it holds the parameters at `start`.
      records: (offset, length, CRC-32) of every run.
    """

    file: Path
    start: int
    stop: int
    keyframe: bool
    records: list[list[int]]


def unit_name(number: int, places: Sequence[Sequence[int]], binding: Binding) -> str:
    """The name of a unit's folder, which differs for other runs, and for the same runs of another directory.

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
    """Writes one segment in one move; an earlier one of the same start is replaced.

    Args:
      folder: the unit's folder.
      start: first step.
      stop: the step after its last update.
      keyframe: whether the records hold the parameters at `start`.
      records: of every run, compressed.
      words: entries of the header that bind the file to its directory and unit.
    """
    files.make_folder(folder)
    ends = np.cumsum([len(record) for record in records]).tolist()
    table = [[end - len(record), len(record), zlib.crc32(record)] for end, record in zip(ends, records)]
    head = json.dumps({"start": start, "stop": stop, "keyframe": keyframe, "records": table, **(words or {})}).encode()
    file = folder / f"{start:09d}{SUFFIX}"
    with replace_file(file) as temporary, temporary.open("xb") as stream:
        stream.write(files.SEGMENT_MAGIC + _LENGTH_AND_CRC.pack(len(head), zlib.crc32(head)) + head)
        for record in records:
            stream.write(record)


def read_segment(file: Path, binding: Binding) -> Segment:
    """The header of a segment.

    Raises:
      UnusableData: if it is damaged, cut off, not ours, or of another place than its own.
    """
    try:
        file_size = file.stat().st_size
        with file.open("rb") as stream:
            magic = stream.read(len(files.SEGMENT_MAGIC))
            size, crc = _LENGTH_AND_CRC.unpack(stream.read(_LENGTH_AND_CRC.size))
            if magic != files.SEGMENT_MAGIC or size > file_size:
                raise ValueError("its first bytes are not a segment's")
            head = stream.read(size)
            base = stream.tell()
        if zlib.crc32(head) != crc:
            raise ValueError("its header does not have the CRC that it was written with")
        header = json.loads(head)
        table = [[base + offset, length, crc] for offset, length, crc in header["records"]]
        segment = Segment(file, header["start"], header["stop"], header["keyframe"], table)
        if file.name != f"{segment.start:09d}{SUFFIX}":
            raise ValueError(f"it begins with step {segment.start}")
        if fault := binding.record_fault(header, unit=file.parent.name):
            raise ValueError(fault)
    except FileNotFoundError:
        raise UnusableData(f"{file} is missing") from None
    except OSError as error:
        raise unreadable(file, error) from None
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
            whole = offset + length <= os.fstat(stream.fileno()).st_size  # checked before memory is taken
            stream.seek(offset)
            record = stream.read(length) if whole else b""
    except FileNotFoundError:
        raise UnusableData(f"{segment.file} is missing; {MENDED}") from None
    except OSError as error:
        raise unreadable(segment.file, error) from None
    if not whole or zlib.crc32(record) != crc:
        raise UnusableData(f"{_bad_record(segment, run)}; {MENDED}")
    return record


def _bad_record(segment: Segment, run: int) -> str:
    return f"{segment.file} is damaged: record {run} does not have the CRC that it was written with"


class Record:
    """One run's record. Its buffer is reused for the next record, since fresh memory costs more than packing.

    Examples:
      >>> record = Record()
      >>> record.numbers(np.arange(3, dtype=np.float32))
      >>> record.deltas(np.ones((2, 2), np.uint8))
      >>> [x.tolist() for x in decompress(record.compressed(), [((3,), "<f4"), ((2, 2), "|u1")])]
      [[0.0, 1.0, 2.0], [[1, 1], [0, 0]]]
    """

    def __init__(self) -> None:
        self.buffer, self.size = np.empty(0, np.uint8), 0

    def _reserve(self, size: int) -> np.ndarray:
        if self.size + size > self.buffer.size:
            larger = np.empty(2 * (self.size + size), np.uint8)
            larger[: self.size] = self.buffer[: self.size]
            self.buffer = larger
        self.size += size
        return self.buffer[self.size - size : self.size]

    def numbers(self, array: np.ndarray) -> None:
        """Adds numbers: the first bytes of all of them, then the second ones, and so on, which compresses better."""
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1)
        self._reserve(raw.size).reshape(raw.shape[::-1])[:] = raw.T

    def deltas(self, steps: np.ndarray) -> None:
        """Adds (steps, ...) unsigned integers as differences (XOR) between consecutive steps, which are mostly 0."""
        if steps.dtype != np.uint8:
            changed = steps.copy()
            np.bitwise_xor(steps[1:], steps[:-1], out=changed[1:])
            self.numbers(changed)
            return
        deltas = self._reserve(steps.size).reshape(steps.shape)
        deltas[:1] = steps[:1]
        np.bitwise_xor(steps[1:], steps[:-1], out=deltas[1:])

    def compressed(self) -> bytes:
        """The record, compressed by zstd; the buffer is empty afterwards."""
        from numcodecs.zstd import Zstd

        size, self.size = self.size, 0
        return Zstd(level=LEVEL).encode(self.buffer[:size])


def decompress(record: bytes, described: Sequence[tuple[Sequence[int], str]]) -> list[np.ndarray]:
    """The arrays of a record, of these shapes and dtypes; `undo_deltas` gives the steps of deltas.

    Raises:
      ValueError: if the record has another size.
    """
    from numcodecs.zstd import Zstd

    wanted = sum(int(np.prod(shape)) * np.dtype(name).itemsize for shape, name in described)
    if frame_size(record) != wanted:  # checked before memory is taken
        raise ValueError(f"a record says that it holds {frame_size(record)} bytes, expected {wanted}")
    raw = np.frombuffer(Zstd().decode(record), np.uint8)
    out, done = [], 0
    for shape, name in described:
        dtype, count = np.dtype(name), int(np.prod(shape))
        part = raw[done : done + count * dtype.itemsize].reshape(dtype.itemsize, -1)
        out.append(np.ascontiguousarray(part.T).view(dtype).reshape(shape))
        done += count * dtype.itemsize
    return out


def undo_deltas(deltas: np.ndarray) -> np.ndarray:
    """The steps (steps, ...) behind the deltas of `Record.deltas`."""
    return np.bitwise_xor.accumulate(deltas, axis=0)


class StoredUnit(NamedTuple):
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
        """{number of a run in the unit: its stored place}, without runs that a later unit has replaced."""
        replaced = set(self.about.get("replaced", ()))
        return {run: tuple(place) for run, place in enumerate(self.about["runs"]) if run not in replaced}

    @property
    def finished(self) -> float:
        """When the unit was finished, in seconds since 1970; 0 for units of earlier versions."""
        return float(self.about.get("finished", 0.0))


def begin(folder: Path, step: int, snapshots: Sequence[int] | None, binding: Binding) -> bool:
    """Prepares a unit's folder to resume at a step: removes later segments; returns whether all earlier ones are whole.

    Args:
      folder: the unit's folder; no run of it counts as stored until `finish`.
      step: the step at which training resumes.
      snapshots: the earlier steps at which parameters are kept; None: all of them.
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
            segment = read_segment(file, binding)
            follows = snapshots is not None or segment.start == reached
            good = segment.start < step and follows and not _damage(segment)
        except UnusableData:
            good = False
        if good:
            reached = segment.stop
            starts.add(segment.start)
        else:
            file.unlink()
    return reached == step if snapshots is None else starts >= set(snapshots)


def flush(folder: Path) -> None:
    """Waits until a unit's segments are on the disk."""
    to_disk(folder.glob(_SEGMENTS), folder.parent.parent)


def finish(folder: Path, about: Mapping[str, Any], binding: Binding) -> None:
    """Writes the index of a unit once its segments are on the disk; from then on its runs count as stored."""
    flush(folder)
    names = [file.name for file in sorted(folder.glob(_SEGMENTS))]
    _write_index(folder, {**about, **binding.words(unit=folder.name), "segments": names, "finished": time.time()})


def _write_index(folder: Path, about: Mapping[str, Any]) -> None:
    write_checked_json(folder / INDEX, about)
    to_disk([folder / INDEX], folder)


def units(path: Path, binding: Binding | None = None) -> Iterator[StoredUnit | str]:
    """Every finished unit of a results directory, or a line about its damage; units of other directories are left out.

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
            names = [segment.name for segment in sorted(file.parent.glob(_SEGMENTS))]
            if about["segments"] != names and set(about["segments"]) <= set(names):
                raise ValueError("it does not name the segments that lie beside it, in their order")
            segments = tuple(read_segment(file.parent / name, binding) for name in about["segments"])
            if fault := _fault(about, segments):
                raise ValueError(fault)
        except OSError as error:
            yield str(unreadable(file, error))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield f"{file} is damaged: {error}"
        except UnusableData as error:
            yield str(error)
        else:
            yield StoredUnit(file.parent, about, segments)


def _fault(about: Mapping[str, Any], segments: Sequence[Segment]) -> str:
    """Why the segments of a unit do not fit its index or one another, "" if they do."""
    for segment in segments:
        if len(segment.records) != len(about["runs"]):
            return f"{segment.file.name} has {len(segment.records)} runs, not {len(about['runs'])}"
    if about["kind"] in EVERY_STEP:
        for before, after in itertools.pairwise(segments):
            if before.stop != after.start:
                return f"{before.file.name} ends at step {before.stop}, and {after.file.name} follows"
    return ""


def run_fault(unit: StoredUnit, run: int) -> str:
    """The damage of the records of one run, "" if all are whole."""
    try:
        for segment in unit.segments:
            read_record(segment, run)
    except UnusableData as error:
        return str(error)
    return ""


def stored(path: Path) -> tuple[set[Place], list[str]]:
    """(places of runs with a whole trajectory, a line for all damage of runs without one)."""
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
    """{run: the damage of its record} of one segment, which is read at once."""
    try:
        raw = memoryview(segment.file.read_bytes())
    except OSError as error:
        return dict.fromkeys(range(len(segment.records)), str(unreadable(segment.file, error)))
    return {
        run: _bad_record(segment, run)
        for run, (offset, length, crc) in enumerate(segment.records)
        if zlib.crc32(raw[offset : offset + length]) != crc or offset + length > len(raw)
    }


def _belongs(folder: Path, binding: Binding) -> bool:
    """Whether a folder in trajectories/ is a unit of this results directory, finished or not, damaged or not.

    No file that can be read may name another directory. If none can be read, the folder's name decides: its last
    letters follow from the others and the directory's id.
    """
    name = folder.name
    if not name.startswith("unit-") or folder.is_symlink():
        return False
    headers = [header for file in [folder / INDEX, *sorted(folder.glob(_SEGMENTS))] if (header := _header(file))]
    if any(map(binding.foreign, headers)):
        return False
    if headers or not binding.sealed:
        return True
    return any(name[-4:] == _digest(word + name[:-4])[:4] for word in binding.known)


def _header(file: Path) -> dict[str, Any] | None:
    """The record that a file of a unit begins with, unchecked; None if it cannot be read."""
    try:
        if file.name == INDEX:
            header = json.loads(file.read_text())
        else:
            with file.open("rb") as stream:
                stream.seek(len(files.SEGMENT_MAGIC))
                size, _ = _LENGTH_AND_CRC.unpack(stream.read(_LENGTH_AND_CRC.size))
                header = json.loads(stream.read(min(size, file.stat().st_size)))
    except (OSError, ValueError, struct.error):
        return None
    return header if isinstance(header, dict) else None


def remove_leftovers(path: Path) -> None:
    """Removes units that never finished, are damaged or were replaced; every run is whole and none is being trained.

    If a later unit holds a run undamaged, the run is struck from the index of the earlier unit; the earlier unit's
    folder is removed with its last run. Units of other results directories stay, and stderr names them.
    """
    binding = binding_at(path)
    finished = newest_first(units(path, binding))
    keeper = {place: newest_whole(copies)[0] for place, copies in copies_of_runs(finished).items()}
    kept = set()
    for unit in finished:
        struck = [run for run, place in unit.places().items() if keeper[place] is not unit]
        if len(struck) < len(unit.places()):
            kept.add(unit.folder)
        if struck and unit.folder in kept:
            replaced = sorted([*unit.about.get("replaced", ()), *struck])
            _write_index(unit.folder, {**unit.about, "replaced": replaced})
    for folder in files.own_folders(path / FOLDER):
        if folder not in kept:
            if _belongs(folder, binding):
                files.remove(folder, files.UNIT)
            else:
                say(f"{folder} is not of these results and stays as it is")


def newest_first(found: Iterable[StoredUnit | str]) -> list[StoredUnit]:
    """The readable units among `units(path)`, the one that was finished last first."""
    return sorted((unit for unit in found if isinstance(unit, StoredUnit)), key=lambda unit: -unit.finished)


def copies_of_runs(finished: Iterable[StoredUnit]) -> dict[Place, list[tuple[StoredUnit, int]]]:
    """{stored place: every (unit, number of the run in it)}, in the order of the units."""
    copies: dict[Place, list[tuple[StoredUnit, int]]] = {}
    for unit in finished:
        for run, place in unit.places().items():
            copies.setdefault(place, []).append((unit, run))
    return copies


def newest_whole(copies: Sequence[tuple[StoredUnit, int]]) -> tuple[StoredUnit, int]:
    """The first undamaged copy of a run; the first one of all if every copy is damaged. A single copy is not read."""
    if len(copies) == 1:
        return copies[0]
    return next((copy for copy in copies if not run_fault(*copy)), copies[0])


def size(path: Path) -> int:
    """Bytes of all trajectories of a results directory."""
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in (path / FOLDER).rglob("*") if file.is_file())
    return 0
