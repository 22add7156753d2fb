"""How are results written and read: results.zarr, pre-allocated, written block by block, checked at every read."""

import contextlib
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from jaxsign.store.binding import binding
from jaxsign.store.files import explain_os_errors, inside, is_results, refuse_links, remove_prepared
from jaxsign.store.labels import attributes, with_bools
from jaxsign.store.manifest import (
    ARRAYS,
    MANIFEST,
    UnusableData,
    check_fit,
    inspect_manifest,
    read_manifest,
    to_disk,
    unreadable,
)
from jaxsign.store.watched import (
    MENDED,
    Expected,
    Slices,
    Variable,
    blocks,
    chunk_files,
    chunk_sizes,
    expected,
    lost_chunks,
    watched,
)  # fmt: skip
from jaxsign.validation.messages import say, silence
from jaxsign.validation.values import local_path

if TYPE_CHECKING:
    import xarray as xr

#: `owned(exclusive)` makes sure that a directory is this process's while it is written to, see `lease.Lease.writing`.
Owned = Callable[[bool], contextlib.AbstractContextManager]
#: Seconds for which finished blocks may wait for their status: their chunks are then synced to the disk together.
HELD = 1.0
#: Seconds after which metadata that look damaged are read again: moving new ones to their place takes less.
RETRY_AFTER = 0.3
T = TypeVar("T")


def import_xarray() -> None:
    """Imports all that a Dataset needs: xarray, and what it imports for the first one, dask.array where there is one.

    It takes half a second, and may be done in another thread before results are ready.
    """
    import xarray as xr

    xr.Dataset(coords={"step": [0]})


class Memory:
    """Variables in memory that blocks write their runs into.

    Args:
      variables: {name: Variable}.
    """

    def __init__(self, variables: Mapping[str, Variable]):
        self.variables = variables
        self.arrays: dict[str, Any] = {name: np.full(v.shape, v.fill, v.dtype) for name, v in variables.items()}

    def write(self, name: str, box: Slices, values: np.ndarray, mine: np.ndarray, records: slice | None = None) -> None:
        """Writes runs of one block; other runs of the block, and entries beyond the values' sizes, stay as they are.

        Args:
          name: the variable.
          box: the block, a slice for every dimension of the runs.
          values: (runs, ...) numbers of the runs that `mine` selects, in C order.
          mine: bool, of the block's shape.
          records: the recorded steps that the values hold; None for a variable without steps.
        """
        variable, array = self.variables[name], self.arrays[name]
        index = box if records is None else (*box, records)
        sizes = values.shape[1 + len(index) - len(box) :]  # of the values' own dimensions
        full = (*index, *(slice(0, size) for size in variable.shape[len(index) :]))
        shape = tuple(s.stop - s.start for s in full)
        if mine.all() and shape[len(index) :] == sizes:
            array[full] = values.reshape(shape)
            return
        block = np.full(shape, variable.fill, variable.dtype) if mine.all() else np.array(array[full])
        runs = block[mine]
        runs[(slice(None), *(slice(None) for _ in index[len(box) :]), *(slice(0, size) for size in sizes))] = values
        block[mine] = runs
        array[full] = block

    def flush(self) -> None:
        """Does nothing in memory."""

    def commit(self) -> None:
        """Does nothing in memory."""

    def commit_due(self) -> None:
        """Does nothing in memory."""

    def dataset(self, coords: Mapping[str, tuple]) -> "xr.Dataset":
        """The variables as an xarray.Dataset."""
        import xarray as xr

        data = {name: (v.dims, self.arrays[name], dict(v.attrs)) for name, v in self.variables.items()}
        return with_bools(xr.Dataset(data, coords=dict(coords)))


class Store(Memory):
    """Variables in results.zarr, one chunk for every block and range of recorded steps.

    A run is stored if its status says so, which is written once all other chunks of its block are on the disk. Every
    write replaces one chunk file in one move, with a seal at its end, so it may be repeated or cut off at any time.

    Args:
      path: results directory.
      variables: {name: Variable}.
      mode: "r" to read only.
      owned: `owned(exclusive)` makes sure that the directory is this process's during a write, or raises.
    """

    def __init__(
        self, path: Path, variables: Mapping[str, Variable], mode: Literal["r", "r+"] = "r+",
        owned: Owned = contextlib.nullcontext,
    ):  # fmt: skip
        import zarr

        self.path, self.variables, self.owned = path, variables, owned
        try:
            manifest = inspect_manifest(path)[0]
        except UnusableData:
            if mode != "r":
                raise
            manifest = None  # `verify` reads as much as it can
        self.expected = expected(path, variables, manifest)
        store = watched(path / ARRAYS, self.expected, read_only=mode == "r")
        root: Any = zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=False)
        self.arrays = {name: root[name].with_config({"write_empty_chunks": True}) for name in variables}
        self.held: list[tuple[Slices, np.ndarray, np.ndarray]] = []
        self.committed = time.monotonic()

    def write(self, name: str, box: Slices, values: np.ndarray, mine: np.ndarray, records: slice | None = None) -> None:
        """As in memory. A status waits for `commit`, which is called here unless the last one was a moment ago.

        Raises:
          ValueError: if the system refuses, naming the directory and the reason.
        """
        if name == "status":
            self.held.append((box, values, mine))
            self.commit_due()
            return
        # Only one process at a time may read, fill in and write part of a chunk.
        with self.owned(not mine.all()), explain_os_errors(self.path):
            self._inside(name, box)
            super().write(name, box, values, mine, records)

    def commit(self) -> None:
        """Waits until all chunks are on the disk, and then writes the status of their runs.

        Raises:
          ValueError: if the system refuses, naming the directory and the reason.
        """
        with self.owned(not all(mine.all() for _, _, mine in self.held)), explain_os_errors(self.path):
            self.flush()
            for box, values, mine in self.held:
                self._inside("status", box)
                super().write("status", box, values, mine)
            self.held.clear()
            self.committed = time.monotonic()

    def commit_due(self) -> None:
        """Calls `commit` if a status waits and the last commit was not a moment ago."""
        if self.held and time.monotonic() - self.committed >= HELD:
            self.commit()

    def _inside(self, name: str, box: Slices) -> None:
        inside(self.path, next(chunk_files(Path(ARRAYS) / name, self.variables[name], box))[0].parent)

    def flush(self) -> None:
        """Waits until every chunk that was written is on the disk."""
        to_disk(self.expected.written, self.path)
        self.expected.written.clear()

    def lost(self, box: Slices) -> str:
        """Why the status of a block cannot be read, "" if it can."""
        return self._line("status", *next(chunk_files(self.path / ARRAYS / "status", self.variables["status"], box)))

    def missing(self, box: Slices) -> np.ndarray:
        """Which runs of a block are not stored, as a bool array; all of them if its status is lost or damaged.

        Raises:
          UnusableData: if the system refuses to read it.
        """
        if self.held:
            self.commit()
        if line := self.lost(box):
            say(f"{line}: its block is run again")
            return np.ones([s.stop - s.start for s in box], bool)
        return np.asarray(self.arrays["status"][box]) < 0

    def damage(self, box: Slices, upto: int | None = None) -> list[str]:
        """The damage of a stored block: a line for every chunk file that is lost or damaged.

        Args:
          box: the block.
          upto: look only at variables with steps, and only at chunks of recorded steps before this one.

        Raises:
          UnusableData: if the system refuses to read one.
        """
        return [line for line, *_ in self._damaged(box, upto)]

    def _damaged(self, box: Slices, upto: int | None = None) -> Iterator[tuple[str, str, Slices]]:
        """(line, variable, index) of every lost or damaged chunk."""
        for name, variable in self.variables.items():
            stepped = "step" in variable.dims
            if upto is not None and not stepped:
                continue
            last = None if upto is None else {variable.dims.index("step"): upto}
            for file, index in chunk_files(self.path / ARRAYS / name, variable, box, last):
                if line := self._line(name, file, index) or ("" if file.is_file() else f"{file} is missing"):
                    yield line, name, index

    def _line(self, name: str, file: Path, index: Slices) -> str:
        key = str(file.relative_to(self.path / ARRAYS))
        return self.expected.fault(key, self.expected.content(key))

    def forget(self, box: Slices) -> None:
        """Clears a damaged block, so that none of it counts as stored if its second run is killed.

        The status is cleared first. Lost or damaged chunks then get the fill value, and may be written in parts.

        Raises:
          ValueError: if the system refuses, naming the directory and the reason.
        """
        with self.owned(False), explain_os_errors(self.path):
            self.arrays["status"][box] = self.variables["status"].fill
            self.flush()
            for _, name, index in list(self._damaged(box)):
                self.arrays[name][index] = self.variables[name].fill


def _write_template(folder: Path, variables: Mapping[str, Variable], coords: Mapping[str, tuple]) -> dict[str, int]:
    """Writes a store's metadata and coordinates, without chunks of its variables; returns the CRC-32 of every file."""
    import xarray as xr
    import zarr
    from zarr.codecs import ZstdCodec

    with silence():  # zarr: variable-length strings have no final specification yet
        codec = ZstdCodec(level=3, checksum=True)
        encoding = {name: {"compressors": [codec]} for name in coords}
        template = xr.Dataset(coords=dict(coords))
        # A store in place of a path, in which xarray would expand "~" and drop "..".
        store = zarr.storage.LocalStore(folder)
        template.to_zarr(store, mode="w", consolidated=False, zarr_format=3, encoding=encoding)
        root = zarr.open_group(folder, mode="r+", zarr_format=3, use_consolidated=False)
        for name, v in variables.items():
            root.create_array(
                name, shape=v.shape, dtype=v.dtype, chunks=v.chunks, fill_value=v.fill, compressors=[codec],
                dimension_names=v.dims, attributes=dict(v.attrs),
            )  # fmt: skip
        zarr.consolidate_metadata(store, zarr_format=3)  # `xr.open_zarr` looks for it, and warns where there is none
    return {str(f.relative_to(folder)): zlib.crc32(f.read_bytes()) for f in sorted(folder.rglob("*")) if f.is_file()}


@contextlib.contextmanager
def prepared(
    path: Path, variables: Mapping[str, Variable], coords: Mapping[str, tuple]
) -> Iterator[tuple[Path, dict[str, int]]]:
    """(folder, CRCs) of a store's metadata and coordinates, prepared beside their place and removed at the end."""
    folder = path / f"{ARRAYS}.{secrets.token_hex(8)}.partial"
    folder.mkdir()
    try:
        yield folder, _write_template(folder, variables, coords)
    finally:
        remove_prepared(folder)


def put_in_place(path: Path, folder: Path) -> None:
    """Moves prepared metadata and coordinates to their place, file by file; chunks of variables are not touched."""
    moved = []
    # The group's own file, which repeats the metadata of all arrays, comes last: they are there when it says so.
    for file in sorted(folder.rglob("*"), key=lambda file: (file.parent == folder, file)):
        if file.is_file():
            target = path / ARRAYS / file.relative_to(folder)
            for above in file.relative_to(folder).parents:
                # A coordinate that now varies along one more axis had a chunk where it has a folder of them.
                if len(above.parts) > 1 and (path / ARRAYS / above).is_file():
                    (path / ARRAYS / above).unlink()
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            moved.append(target)
    to_disk(moved, path)


def fill_new_chunks(path: Path, folder: Path, variables: Mapping[str, Variable], manifest: Mapping[str, Any]) -> None:
    """Prepares new chunks of stored runs after an extension made an observable longer.

    These chunks contain only the fill value. They are written so that a missing file always means a lost chunk.

    Args:
      path: results directory with the arrays as they were.
      folder: the prepared store.
      variables: its variables.
      manifest: of the extended directory.
    """
    import zarr

    old = stored_variables(path)
    status, own = old["status"], len(old["status"].shape)
    longer = [name for name in variables if name in old and old[name].shape[own:] != variables[name].shape[own:]]
    if not longer:
        return
    before, begun = Store(path, old, mode="r"), []
    for box in blocks(status.shape, status.chunks):
        with contextlib.suppress(UnusableData):  # a block with a damaged status is run again as a whole
            if (np.asarray(before.arrays["status"][box]) >= 0).any():
                begun.append(box)
    none = np.zeros([1] * len(status.shape), bool)
    needed = Expected(folder, {}, chunk_sizes(variables), none, binding(manifest))
    root: Any = zarr.open_group(
        watched(folder, needed, read_only=False), mode="r+", zarr_format=3, use_consolidated=False
    )
    for name in longer:
        array = root[name].with_config({"write_empty_chunks": True})
        for box in begun:
            for file, index in chunk_files(path / ARRAYS / name, variables[name], box):
                if not file.exists():
                    array[index] = variables[name].fill


def damaged_metadata(path: Path, crcs: Mapping[str, int]) -> list[str]:
    """A line for every zarr.json and every coordinate's chunk with another CRC than the manifest's.

    Args:
      path: results directory.
      crcs: {file in results.zarr: CRC-32}.
    """
    lines = []
    for name, crc in crcs.items():
        file = path / ARRAYS / name
        try:
            good = file.is_file() and zlib.crc32(file.read_bytes()) == crc  # reading a pipe would wait for its writer
        except OSError as error:
            lines.append(str(unreadable(file, error)))
            continue
        if not good:
            lines.append(f"{file} is damaged or missing: its CRC is not the manifest's")
    return lines


def stored_variables(path: Path) -> dict[str, Variable]:
    """{name: variable} of a store, according to its metadata."""
    import zarr

    root: Any = zarr.open_group(path / ARRAYS, mode="r", zarr_format=3, use_consolidated=False)
    variables = {}
    runs = root["status"].metadata.dimension_names
    for name, array in root.arrays():
        dims = tuple(array.metadata.dimension_names or ())
        if name not in dims and dims[: len(runs)] == tuple(runs):
            attrs = dict(array.attrs)
            variables[name] = Variable(dims, array.shape, array.dtype, array.fill_value, array.chunks, attrs)
    return variables


def open_results(out: str | os.PathLike) -> "xr.Dataset | xr.DataTree":
    """Opens a results directory as a lazy xarray.Dataset, after checking its metadata against the manifest's CRCs.

    Chunk checksums guard the numbers when they are read; the CRCs guard shapes, dtypes and fill values. Runs that have
    not run yet have status -1; their floats and bools are NaN, signed integers -1, unsigned ones the largest number.

    Args:
      out: a results directory, finished or not, or a folder of several.

    Returns:
      xarray.Dataset, read lazily, in the definition's order, with a line about it in attrs["description"] and the
      manifest as JSON text in attrs["manifest"]; coordinates are in memory. Of a folder of results directories, an
      xarray.DataTree with a Dataset at the path of each: `open_results("results")["snr"]`.

    Raises:
      ValueError: if `out` is neither a results directory nor a folder of some.
      UnusableData: if the manifest or some array's metadata is damaged, or chunks of finished runs are gone.

    Examples:
      >>> import jaxsign as js, tempfile
      >>> sweep = js.Sweep(system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10),
      ...     hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.sign_gd(1e-3)}, axes={"seed": 2}, steps=20)
      >>> with tempfile.TemporaryDirectory() as out:
      ...     _ = js.run_sweep(sweep, out)
      ...     int((js.open_results(out)["status"] == 0).sum())
      2
    """
    path = local_path("out", out).absolute()
    below = [] if is_results(path) else _below(path)
    if not below:
        return opened(path)
    import xarray as xr

    return xr.DataTree.from_dict({folder.relative_to(path).as_posix(): opened(folder) for folder in below})


def open_dataset(out: str | os.PathLike) -> "xr.Dataset":
    """`open_results` of one results directory.

    Raises:
      ValueError: if `out` is not a results directory.
      UnusableData: as `open_results`.
    """
    return opened(local_path("out", out).absolute())


def _below(path: Path) -> list[Path]:
    """The results directories in a folder and its folders, sorted; links are not followed."""
    found = []
    for folder, inner, _ in os.walk(path):
        if is_results(Path(folder)):
            found.append(Path(folder))
            inner.clear()  # no other results lie among its chunks
    return sorted(found)


def opened(path: Path) -> "xr.Dataset":
    """`open_results` of an absolute path, in which "~" is a name like any other."""
    return try_twice(lambda: _opened(path))


def try_twice(read: Callable[[], T]) -> T:
    """The result of `read()`, which is called again after an error: a sweep may be replacing metadata just then.

    Raises:
      UnusableData: if two calls in a row raise the same.
    """
    message = ""
    while True:
        try:
            return read()
        except UnusableData as error:
            if str(error) == message:
                raise
            message = str(error)
            time.sleep(RETRY_AFTER)


def _opened(path: Path) -> "xr.Dataset":
    import xarray as xr

    if not is_results(path):
        raise ValueError(f"out must be a results directory with {MANIFEST} and {ARRAYS}, got {str(path)!r}")
    manifest = read_manifest(path)
    assert manifest is not None
    refuse_links(path, manifest, (ARRAYS,))
    broken = damaged_metadata(path, manifest["crc32"])
    try:
        if not broken:
            check_fit(manifest, path / ARRAYS)
            variables, status = stored_variables(path), read_status(path)
            broken = lost_chunks(path, variables, status)
        if broken:
            raise UnusableData(f"{broken[0]}; {MENDED}")
        with silence():  # zarr: variable-length strings have no final specification yet
            needed = expected(path, variables, manifest, status)
            # Without decoding, a number of seconds stays a number, as in memory.
            ds = xr.open_zarr(watched(path / ARRAYS, needed), consolidated=False, chunks=None, decode_times=False)
        # In memory, so that they select; and not everything compares NumPy's new string dtype with plain strings yet.
        kept = {n: c.load() if c.dtype.kind in "biuf" else c.astype(object).load() for n, c in ds.coords.items()}
        ds = ds.assign_coords(kept)
        ds = ds.isel(places(ds["status"].dims, manifest["order"]))
        for name, value in manifest.get("base", {}).items():
            ds = ds.assign_coords({name: value})
        ds = with_bools(ds)  # bools are read here
    except (UnusableData, MemoryError):
        raise
    except Exception as error:  # zarr and its codecs raise many kinds about bytes that were changed
        raise UnusableData(f"{path / ARRAYS} cannot be read: {' '.join(str(error).split())}") from None
    ds.attrs |= attributes(manifest)
    return ds


def places(dims: Sequence[str], order: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """{dimension: stored place of each of the definition's points}, without dimensions stored in that order.

    Examples:
      >>> places(("snr", "seed"), [[0, 1], [2, 0, 1]])
      {'seed': array([1, 2, 0])}
    """
    return {dim: np.argsort(points) for dim, points in zip(dims, order) if list(points) != sorted(points)}


def read_status(path: Path) -> np.ndarray:
    """The status of every run, in stored order.

    Raises:
      UnusableData: if it cannot be read.
    """
    import zarr

    try:
        array: Any = zarr.open_array(path / ARRAYS / "status", mode="r", zarr_format=3)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableData(f"{path / ARRAYS / 'status'} cannot be read: {' '.join(str(error).split())}") from None
    variable = Variable((), array.shape, array.dtype, array.fill_value, array.chunks, {})
    store = watched(path / ARRAYS, expected(path, {"status": variable}, inspect_manifest(path)[0]))
    return np.asarray(zarr.open_array(store, path="status", mode="r", zarr_format=3)[...])
