"""Whether everything in a results directory is whole: manifest, arrays, checkpoints and trajectories."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.store import checkpoints, files, locks, results, trajectory
from jaxsign.store.manifest import ARRAYS, MANIFEST, UnusableData, check_fit, inspect_manifest
from jaxsign.store.results import Store
from jaxsign.validation.messages import counted

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass
class Checked:
    """The result of reading one results directory.

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
    checked, manifest = Checked(), None
    try:
        manifest, damage = inspect_manifest(path)
        checked.damage += damage.values()
        if manifest is None:
            checked.damage.append(f"{path / MANIFEST} is missing")
        else:
            checked.runs = math.prod(map(len, manifest["order"]))
            checked.accepted = accepted_words(manifest)
    except UnusableData as error:
        checked.damage.append(str(error))
    if odd := files.planted(path, manifest):
        checked.damage.append(odd)
        return checked  # nothing is read through a link
    if (path / ARRAYS).is_dir():
        check_arrays(path, manifest, checked)
    else:
        checked.damage.append(f"{path / ARRAYS} is missing")
    _check_trajectories(path, manifest, checked)
    if manifest is None and (path / ARRAYS).is_dir():
        checked.mend.append(f"put {MANIFEST} back from a copy: without it, nothing can be loaded or run")
    elif not checked.mend and (checked.damage or checked.not_run):
        checked.mend.append("run the sweep's own command again: it computes what is damaged or missing")
    lines = _check_checkpoints(path, checked)
    if lines:
        checked.damage += lines
        checked.mend.append("the next start passes over a damaged checkpoint")
    if (checked.damage or checked.not_run) and (running := locks.holders(path)[0]):
        checked.mend.append(f"what is being written may look damaged: {'; '.join(running)}; verify again afterwards")
    return checked


def accepted_words(manifest: Mapping[str, Any]) -> list[str]:
    """A line for every change of code that was accepted: date, reason and difference."""
    return [
        f"{note['date'][:10]}: {note['reason']} ({'; '.join(note['differences'])})"
        for note in manifest.get("accepted", ())
    ]


def check_arrays(path: Path, manifest: Mapping[str, Any] | None, checked: Checked) -> None:
    """Reads results.zarr, as far as its metadata can be trusted, and notes the result in `checked`."""
    broken = results.damaged_metadata(path, manifest["crc32"]) if manifest else []
    checked.damage += broken
    if broken:
        return  # without trusted shapes, chunks and codecs, reading would report more damage than there is
    try:
        if odd := [file for file in (path / ARRAYS).glob("*/zarr.json") if not file.is_file()]:
            raise UnusableData(f"{odd[0]} is no file")  # reading a pipe would wait for its writer
        if manifest:
            check_fit(manifest, path / ARRAYS)
        store = Store(path, results.stored_variables(path), mode="r")
    except UnusableData as error:
        checked.damage.append(str(error))
        checked.mend.append("put back what was changed: nothing can be loaded or run before")
        return
    except Exception as error:  # zarr raises many kinds about metadata that were changed
        checked.damage.append(f"{path / ARRAYS} cannot be opened: {' '.join(str(error).split())}")
        return
    status = store.variables["status"]
    checked.runs = math.prod(status.shape)
    stored = sum(_check_block(store, box, checked) for box in results.blocks(status.shape, status.chunks))
    checked.not_run = checked.runs - stored
    # A manifest of a version that did not note the stored blocks cannot tell lost status from runs that never ran.
    counts = manifest["runs"] if manifest and "stored_blocks" not in manifest else {}
    lost = counts.get("finished", 0) + counts.get("diverged", 0) - stored
    if lost > 0:
        checked.damage.append(f"{path / ARRAYS / 'status'} has lost {counted(lost, 'run')} that the manifest counts")


def _check_block(store: Store, box: results.Slices, checked: Checked) -> int:
    """Reads the chunks of one block; returns how many of its runs are stored."""
    try:
        stored = np.asarray(store.arrays["status"][box]) >= 0
    except UnusableData:  # `store.damage` below has the line
        stored = np.ones([s.stop - s.start for s in box], bool)
    if not stored.any():
        return 0
    try:
        checked.damage += store.damage(box)
    except UnusableData as error:  # the system refuses to read a file
        checked.damage.append(str(error))
    for name, variable in store.variables.items():
        for file, _ in results.chunk_files(store.path / ARRAYS / name, variable, box):
            with contextlib.suppress(OSError):  # a line above says that it is missing
                checked.size += file.stat().st_size
                checked.chunks += 1
    return int(stored.sum())


def _check_trajectories(path: Path, manifest: Mapping[str, Any] | None, checked: Checked) -> None:
    """Reads trajectories/, and compares it with the stored runs."""
    whole, lines = trajectory.stored(path)
    checked.trajectories = len(whole)
    checked.damage += lines
    lost = checked.runs - checked.not_run - len(whole)
    if manifest and manifest["definition"]["trajectory"] is not None and lost > 0 and not lines:
        checked.damage.append(f"{path / trajectory.FOLDER} lacks {counted(lost, 'stored run')}")


def _check_checkpoints(path: Path, checked: Checked) -> list[str]:
    """A line for every damaged checkpoint. A running sweep replaces them: only what stays damaged counts."""
    records = checkpoints.records(path)
    checked.checkpoints, lines = len(records), []
    for folder in dict.fromkeys(record.parent for record in records):
        first = _damaged_checkpoints(folder)
        second = _damaged_checkpoints(folder) if first else []
        lines += [line for line in first if line in second]
    return lines


def _damaged_checkpoints(folder: Path) -> list[str]:
    try:
        return checkpoints.damage(folder)
    except OSError as error:
        return [f"{folder} cannot be read: {error.strerror or error}"] if folder.exists() else []


def undamaged(path: Path) -> tuple["xr.Dataset", Checked]:
    """(lazy Dataset of a results directory, what was checked), every chunk read once.

    Raises:
      ValueError: if it is no results directory.
      UnusableData: if something in it is damaged.
    """
    ds, checked = results.opened(path), Checked()
    check_arrays(path, inspect_manifest(path)[0], checked)
    if checked.damage:
        raise UnusableData(f"{checked.damage[0]}; jaxsign verify lists all damage")
    return ds, checked
