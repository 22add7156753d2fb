"""The work behind `jaxsign plan`, `status` and `verify`: what a sweep will take, and what is on disk."""

import contextlib
import dataclasses
import fcntl
import fnmatch
import json
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from jaxsign.store import checkpoints, files, locks, results, trajectory
from jaxsign.store.manifest import MANIFEST, UnusableData, check_fit, examined
from jaxsign.store.results import ARRAYS, Store
from jaxsign.sweep.forecast import Forecast, forecast
from jaxsign.sweep.progress import clock
from jaxsign.sweep.sweep import Sweep
from jaxsign.validation.messages import counted, say, show, size_words
from jaxsign.validation.values import local_path


def time_words(seconds: float) -> str:
    """A duration in words.

    Examples:
      >>> time_words(0.003), time_words(4.25), time_words(42.0), time_words(200)
      ('< 0.1 s', '4.2 s', '42 s', '3.3 min')
    """
    short = "< 0.1 s" if seconds < 0.05 else f"{seconds:.1f} s"
    return short if seconds < 10 else clock(seconds)


def print_plan(
    sweeps: Mapping[str, Sweep], command: str, memory: int | None, speed: float | None, devices: int
) -> None:
    """Prints what every sweep will take, their total, and the command that runs them."""
    import jax

    found = []
    for key, sweep in sweeps.items():
        if speed is None:  # minutes where steps are slow and programs are many
            say(f"{key}: compiling and measuring; --seed-steps-per-second skips it")
        found.append(forecast(sweep, memory, speed, devices))
        print("\n".join(plan_lines(key, found[-1])), flush=True)
    own = jax.local_devices()
    if speed is None:
        source = f"of training on {counted(len(own), f'{own[0].platform} device')}, measured now; compiling is extra"
    else:
        source = f"of training on {counted(devices, 'device')} of {speed:g} seed-steps/s; compiling is extra"
    runs, programs = (sum(getattr(f, name) for f in found) for name in ("runs", "programs"))
    print(f"total: {counted(runs, 'run')}, {counted(programs, 'program')} to compile")
    print(f"  time         {time_words(sum(f.seconds for f in found))} {source}")
    print(f"  results      {size_words(sum(f.result_bytes for f in found))} before compression")
    print(f"  checkpoints  {size_words(max(f.checkpoint_bytes for f in found))} at a time at most")
    if kept := sum(f.trajectory_bytes for f in found):
        print(f"  trajectories {size_words(kept)}, about")
    print(f"  command      {command}" + (f" --memory {memory}" if memory is not None else ""))


def plan_lines(key: str, found: Forecast) -> list[str]:
    """One sweep's forecast in words: a head line, a line for every group, a line of bytes and time."""
    groups, programs = counted(len(found.groups), "group"), counted(found.programs, "program")
    lines = [f"{key}: {counted(found.runs, 'run')} of {counted(found.steps, 'step')}, {groups}, {programs}"]
    rows = []
    for g in found.groups:
        setting = ", ".join(f"{name}={value}" for name, value in g.setting.items())
        calls, lanes = f"in {counted(g.calls, 'call')}", f"lanes of {g.width}"
        rows.append([g.family, g.task, setting, counted(g.runs, "run"), calls, lanes, time_words(g.seconds)])
    lines += [f"  {row}" for row in _aligned(rows)]
    lines.append(
        f"  {time_words(found.seconds)} in all; a call holds up to {counted(found.call_runs, 'run')} in "
        f"{size_words(found.call_bytes)}; results {size_words(found.result_bytes)}, checkpoints "
        f"{size_words(found.checkpoint_bytes)}"
    )
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words with every column as wide as its longest word; columns without words are left out."""
    columns = [column for column in zip(*rows) if any(column)]
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in zip(*columns)]


def results_below(*directories: str) -> list[Path]:
    """The results directories at and below some directories, in their order, each of them once.

    Raises:
      ValueError: if there is none in one of them.
    """
    found: dict[Path, Path] = {}  # by their full paths
    for directory in directories:
        for path in _below(directory):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _below(directory: str) -> list[Path]:
    """The results directories at and below a directory, sorted: finished, unfinished, damaged or being begun.

    Links are followed, but not out to a folder that holds `directory` itself. What several names lead to comes once,
    under a name without links if it has one. What cannot be read is named on stderr.

    Raises:
      ValueError: if there is none.
    """
    top = local_path("DIR", directory)
    found: list[Path] = []
    seen = {_identity(folder) for folder in top.resolve().parents}
    folders: list[Path] = [top] if top.is_dir() else []
    links: list[Path] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # all folders come before the first link
        try:
            own = _identity(folder)
            if own in seen:
                continue
            seen.add(own)
            if _holds_results(folder):
                found.append(folder)  # thousands of chunks below it, and no other results
                continue
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(folder / entry.name)
                elif entry.is_symlink() and (os.path.isdir(entry) or not os.path.exists(entry)):
                    links.append(folder / entry.name)
        except OSError as error:
            what = "folder"
            with contextlib.suppress(OSError):  # no link, or gone since
                what = f"link to {os.readlink(folder)!r}"
            say(f"{folder}: left out: a {what} that cannot be read: {error.strerror or error}")
    if not found:
        raise ValueError(
            f"DIR must hold finished results or those of a sweep under way ({MANIFEST} and {ARRAYS}), got {directory!r}"
        )
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    """What all names of a folder have in common."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _holds_results(path: Path) -> bool:
    """Whether a directory is of a sweep, whatever is left of it; other programs' manifest.json do not count."""
    held = (path / ARRAYS).is_dir() or any((path / locks.FOLDER).glob("shard-*.lock"))
    with contextlib.suppress(UnusableData):
        return held or examined(path)[0] is not None
    return False


def _files(folder: Path, name: str) -> list[Path]:
    """The files below a folder whose names fit a pattern, sorted; a running sweep may take them away meanwhile."""
    found = [Path(parent, file) for parent, _, files in os.walk(folder) for file in fnmatch.filter(files, name)]
    return sorted(found)


def holders(path: Path) -> tuple[list[str], list[str]]:
    """(words for the processes that run a results directory, words for those that ended without a word).

    Nothing is locked unless a process with the recorded number lives: a run that starts at this moment would otherwise
    find its lock taken. Those on other machines are judged by when they last touched their lock.
    """
    running: list[str] = []
    gone: list[str] = []
    for file in sorted((path / locks.FOLDER).glob("shard-*.lock")):
        try:
            holder = json.loads(files.read(file, 4096) or b"{}")
            words = f"process {holder['pid']} on {holder['host']} since {_date(_seconds(holder['since']))}"
            here, age = holder["host"] == socket.gethostname(), time.time() - file.stat().st_mtime
            lives = _lives_here(int(holder["pid"]), file) if here else age < 3 * locks.HEARTBEAT
            lives = lives and not holder.get("gone")  # another process has found it dead
        except (OSError, ValueError, KeyError, TypeError, UnusableData):  # nobody's, or being written
            continue
        _, index, _, count = file.stem.split("-")
        shard = "" if count == "1" else f"shard {index}/{count}: "
        seen = "" if here else f", last sign of life {time_words(max(age, 0.0))} ago"
        (running if lives else gone).append(f"{shard}{words}{seen}")
    return running, gone


def _lives_here(pid: int, file: Path) -> bool:
    """Whether a process of this machine lives and holds a lock."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False  # the number is another process's by now


def _seconds(text: str) -> datetime:
    """A time of the manifest."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _times(path: Path, manifest: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """(when a sweep was begun, when it was last worked on).

    A session writes its line when it ends; what one did that was killed shows in the files that it wrote.
    """
    ends = [_seconds(manifest["finished"]), *(_seconds(s["finished"]) for s in manifest["sessions"])]
    begins = [_seconds(s["finished"]) - timedelta(seconds=s["seconds"]) for s in manifest["sessions"]]
    files: list[Path] = []
    if manifest["runs"].get("not_run", 1):
        files = [*_files(path / ARRAYS / "status" / "c", "*"), *_files(path / checkpoints.FOLDER, "*.json")]
    written = []
    for file in files:
        with contextlib.suppress(OSError, ValueError, OverflowError):  # gone since, or a time of no calendar
            written.append(datetime.fromtimestamp(file.stat().st_mtime, UTC))
    return min(ends + begins), max(ends + written)


def print_status(*directories: str) -> int:
    """Prints where every sweep at and below some directories stands; reads only.

    Returns:
      How many manifests cannot be read.
    """
    unreadable = 0
    for number, path in enumerate(results_below(*directories)):
        lines, readable = _status_lines(path)
        unreadable += not readable
        for line in [*[""] * bool(number), path, *(f"  {line}" for line in _aligned(lines))]:
            show(line)
    return unreadable


def _status_lines(path: Path) -> tuple[list[list[str]], bool]:
    """([label, words] of one results directory, whether its manifest can be read)."""
    running, gone = holders(path)
    people = [["running", words] for words in running] + [["cut off", words] for words in gone]
    try:
        manifest, damage = examined(path)
        if manifest and not results.damaged_metadata(path, manifest["crc32"]):
            check_fit(manifest, path / ARRAYS)
    except UnusableData as error:
        return [["damaged", str(error)], *people, ["next", "jaxsign verify says what is left"]], False
    if odd := files.planted(path, manifest):
        return [["damaged", odd], *people], False
    if manifest is None:
        if (path / ARRAYS).is_dir():
            return [["damaged", f"{path / MANIFEST} is missing"], ["next", "put it back"]], False
        again = "wait for what is running" if running else "run the sweep's own command again"
        return [["runs", "nothing is stored yet"], *people, ["next", again]], True
    lines, left = [["damaged", line] for line in damage.values()], True
    try:
        status = results.settled(lambda: results.read_status(path))
    except UnusableData as error:
        lines.append(["damaged", str(error)])
    else:
        kinds = {"finished": status == 0, "diverged": status == 1, "not run": status < 0}
        lines.append(["runs", f"{status.size}: " + ", ".join(f"{which.sum()} {kind}" for kind, which in kinds.items())])
        left = bool((status < 0).any())
    begun, last = _times(path, manifest)
    lines.append(["begun", f"{_date(begun)}, last worked on {_date(last)}"])
    sessions = counted(len(manifest["sessions"]), "session")
    worked = f"{time_words(manifest['wall_seconds'])} in {sessions}" if manifest["sessions"] else "no session has ended"
    lines.append(["worked", worked])
    lines += [["accepted", words] for words in accepted_words(manifest)]
    lines += people
    steps = {record.parent.name: int(record.stem) for record in _checkpoints(path)}  # the last of a block's counts
    for name, step in steps.items():
        block = name.removeprefix("block-").lstrip("0") or "0"
        lines.append(["checkpoint", f"block {block} at step {step} of {manifest['definition']['steps']}"])
    todo = "wait for what is running" if running else "run the sweep's own command again: it goes on from here"
    if damage and not running:
        todo, left = "run the sweep's own command again: it mends what is damaged", True
    lines.append(["next", todo if left else "finished"])
    return lines, True


def _checkpoints(path: Path) -> list[Path]:
    """The records of a directory's checkpoints, by block and step."""
    found = [record for record in _files(path / checkpoints.FOLDER, "*.json") if record.stem.isdecimal()]
    return sorted(found, key=lambda record: (record.parent.name, int(record.stem)))


def accepted_words(manifest: Mapping[str, Any]) -> list[str]:
    """A line for every change of code that was accepted: date, reason and difference."""
    return [
        f"{note['date'][:10]}: {note['reason']} ({'; '.join(note['differences'])})"
        for note in manifest.get("accepted", ())
    ]


@dataclasses.dataclass
class Checked:
    """What was found in one results directory.

    Args:
      damage: a line for everything that is damaged or gone.
      mend: what to do about it, a line each.
      runs: runs of its grid.
      not_run: runs that have never been run.
      chunks, size: chunks that were read, and their bytes on disk.
      checkpoints: checkpoints that were read.
      trajectories: runs whose trajectory is whole.
      accepted: a line for every change of code that was accepted while the sweep was run.
    """

    damage: list[str] = dataclasses.field(default_factory=list)
    mend: list[str] = dataclasses.field(default_factory=list)
    runs: int = 0
    not_run: int = 0
    chunks: int = 0
    size: int = 0
    checkpoints: int = 0
    trajectories: int = 0
    accepted: list[str] = dataclasses.field(default_factory=list)

    @property
    def verdict(self) -> str:
        """One word, or two."""
        words = [word for word, bad in (("damaged", self.damage), ("incomplete", self.not_run)) if bad]
        return " and ".join(words) or "good"


def check_directory(path: Path) -> Checked:
    """Reads everything in a results directory: manifest, metadata, chunks of stored runs, checkpoints, trajectories."""
    found, manifest = Checked(), None
    try:
        manifest, damage = examined(path)
        found.damage += damage.values()
        if manifest is None:
            found.damage.append(f"{path / MANIFEST} is missing")
        else:
            found.runs = math.prod(map(len, manifest["order"]))
            found.accepted = accepted_words(manifest)
    except UnusableData as error:
        found.damage.append(str(error))
    if odd := files.planted(path, manifest):
        found.damage.append(odd)
        return found  # nothing is read through a link
    if (path / ARRAYS).is_dir():
        check_arrays(path, manifest, found)
    else:
        found.damage.append(f"{path / ARRAYS} is missing")
    _check_trajectories(path, manifest, found)
    if manifest is None and (path / ARRAYS).is_dir():
        found.mend.append(f"put {MANIFEST} back from a copy: without it, nothing can be loaded or run")
    elif not found.mend and (found.damage or found.not_run):
        found.mend.append("run the sweep's own command again: it computes what is damaged or missing")
    lines = _check_checkpoints(path, found)
    if lines:
        found.damage += lines
        found.mend.append("the next start passes over a damaged checkpoint")
    if (found.damage or found.not_run) and (running := holders(path)[0]):
        found.mend.append(f"what is being written may look damaged: {'; '.join(running)}; verify again afterwards")
    return found


def check_arrays(path: Path, manifest: Mapping[str, Any] | None, found: Checked) -> None:
    """Reads results.zarr, as far as its metadata can be trusted."""
    broken = results.damaged_metadata(path, manifest["crc32"]) if manifest else []
    found.damage += broken
    if broken:
        return  # shapes, chunks and codecs are not known for certain: reading would find more damage than there is
    try:
        if odd := [file for file in (path / ARRAYS).glob("*/zarr.json") if not file.is_file()]:
            raise UnusableData(f"{odd[0]} is no file")  # a pipe would wait for its writer
        if manifest:
            check_fit(manifest, path / ARRAYS)
        variables = results.stored_variables(path)
        store = Store(path, variables, mode="r")
    except UnusableData as error:
        found.damage.append(str(error))
        found.mend.append("put back what was changed: nothing can be loaded or run before")
        return
    except Exception as error:  # whatever zarr raises about metadata that are not what was written
        found.damage.append(f"{path / ARRAYS} cannot be opened: {_line(error)}")
        return
    status = variables["status"]
    found.runs = math.prod(status.shape)
    stored = 0
    for box in results.blocks(status.shape, status.chunks):
        try:
            begun = np.asarray(store.arrays["status"][box]) >= 0
        except UnusableData:  # its line comes with the block's
            begun = np.ones([s.stop - s.start for s in box], bool)
        stored += int(begun.sum())
        if not begun.any():
            continue
        try:
            found.damage += store.damage(box)
        except UnusableData as error:  # the system refuses to read a file
            found.damage.append(str(error))
        for name, variable in variables.items():
            for file, _ in results.chunk_files(path / ARRAYS / name, variable, box):
                with contextlib.suppress(OSError):  # a line above says that it is missing
                    found.size += file.stat().st_size
                    found.chunks += 1
    found.not_run = found.runs - stored
    # In a manifest of a version that did not note the blocks, lost status looks like runs that have never been run.
    counts = manifest["runs"] if manifest and "stored_blocks" not in manifest else {}
    lost = counts.get("finished", 0) + counts.get("diverged", 0) - stored
    if lost > 0:
        found.damage.append(f"{path / ARRAYS / 'status'} has lost {counted(lost, 'run')} that the manifest counts")


def _check_trajectories(path: Path, manifest: Mapping[str, Any] | None, found: Checked) -> None:
    """Reads trajectories/, and compares it with what is stored."""
    whole, lines = trajectory.stored(path)
    found.trajectories = len(whole)
    found.damage += lines
    lost = found.runs - found.not_run - len(whole)
    if manifest and manifest["definition"]["trajectory"] is not None and lost > 0 and not lines:
        found.damage.append(f"{path / trajectory.FOLDER} lacks {counted(lost, 'stored run')}")


def _check_checkpoints(path: Path, found: Checked) -> list[str]:
    """A line for every damaged checkpoint. A running sweep replaces them: only what stays damaged counts."""
    records = _checkpoints(path)
    found.checkpoints, lines = len(records), []
    for folder in dict.fromkeys(record.parent for record in records):
        seen: list[list[str]] = []
        while len(seen) < 2 and seen != [[]]:
            try:
                seen.append(checkpoints.damage(folder))
            except OSError as error:
                seen.append([f"{folder} cannot be read: {error.strerror or error}"] if folder.exists() else [])
        lines += [line for line in seen[0] if line in seen[-1]]
    return lines


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def undamaged(path: Path) -> tuple[Any, Checked]:
    """(lazy Dataset of a results directory, what was checked), every chunk read once.

    Raises:
      ValueError: if it is no results directory.
      UnusableData: if something in it is damaged.
    """
    ds, found = results.opened(path), Checked()
    check_arrays(path, examined(path)[0], found)
    if found.damage:
        raise UnusableData(f"{found.damage[0]}; jaxsign verify lists all damage")
    return ds, found


def print_verify(*directories: str) -> bool:
    """Prints what is damaged or not run at and below some directories; whether all of it is good."""
    checked = []
    for path in results_below(*directories):
        found = check_directory(path)
        checked.append(found)
        show(f"{path}: {found.verdict}: {counted(found.runs, 'run')}, {_read([found])}")
        for line in found.damage:
            show(f"  {line}")
        if found.not_run:
            show(f"  incomplete: {found.not_run} of {counted(found.runs, 'run')} not run")
        for line in found.accepted:
            show(f"  accepted {line}")
        for line in found.mend:
            show(f"  -> {line}")
    good = sum(found.verdict == "good" for found in checked)
    if len(checked) > 1:
        show(f"{good} of {len(checked)} directories are good: {_read(checked)}")
    return good == len(checked)


def _read(checked: Sequence[Checked]) -> str:
    """What was read, in words."""
    chunks, size, saved = (sum(getattr(c, name) for c in checked) for name in ("chunks", "size", "checkpoints"))
    kept = sum(c.trajectories for c in checked)
    words = [f"{counted(chunks, 'chunk')} ({size_words(size)})", counted(saved, "checkpoint")]
    words += [f"trajectories of {counted(kept, 'run')}"] if kept else []
    return f"{', '.join(words[:-1])} and {words[-1]} read"
