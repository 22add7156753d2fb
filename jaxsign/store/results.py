"""results.zarr: pre-allocated, written block by block, checked when it is read."""

import contextlib
import itertools
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxsign.labelled import manifest_text, stored_as, with_bools
from jaxsign.messages import say, silence
from jaxsign.store.files import ARRAYS, inside, is_results, named, refuse_links, remove_prepared
from jaxsign.store.manifest import MANIFEST, UnusableData, read_manifest
from jaxsign.store.watched import Expected, watched
from jaxsign.validation import local_path

Slices = tuple[slice, ...]


class Variable(NamedTuple):
    """One variable of a store.

    Args:
      dims: names of its dimensions: the runs' first, then the step, then its own.
      shape: their sizes.
      dtype: of its numbers.
      fill: what a run that has not run reads as.
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
        """The variable with the dtype, fill and marks that the numbers of another one are stored with."""
        if self.dtype == other.dtype:
            return self
        marks = stored_as(bool)[2]
        attrs = {name: value for name, value in self.attrs.items() if name not in marks}
        return self._replace(dtype=other.dtype, fill=other.fill, attrs=attrs)


class Memory:
    """Variables in memory that blocks write their runs into.

    Args:
      variables: {name: Variable}.
    """

    def __init__(self, variables: Mapping[str, Variable]):
        self.variables = variables
        self.arrays: dict[str, Any] = {name: np.full(v.shape, v.fill, v.dtype) for name, v in variables.items()}

    def write(self, name: str, box: Slices, values: np.ndarray, mine: np.ndarray, records: slice | None = None) -> None:
        """Writes runs of one block; what the block holds of other runs, and beyond the values' own sizes, stays.

        Args:
          name: the variable.
          box: the block, a slice for every dimension of the runs.
          values: (runs, ...) numbers of the runs that `mine` selects, in C order.
          mine: bool, of the block's shape.
          records: the recorded steps that the values hold; None for a variable without steps.
        """
        variable, array = self.variables[name], self.arrays[name]
        index = box if records is None else (*box, records)
        own = tuple(slice(0, size) for size in values.shape[1 + len(index) - len(box) :])
        whole = (*index, *(slice(0, size) for size in variable.shape[len(index) :]))
        shape = tuple(s.stop - s.start for s in whole)
        if mine.all() and shape[len(index) :] == values.shape[1 + len(index) - len(box) :]:
            array[whole] = values.reshape(shape)
            return
        block = np.full(shape, variable.fill, variable.dtype) if mine.all() else np.array(array[whole])
        part = block[mine]
        part[(slice(None), *(slice(None) for _ in index[len(box) :]), *own)] = values
        block[mine] = part
        array[whole] = block

    def dataset(self, coords: Mapping[str, tuple]) -> Any:
        """The variables as an xarray.Dataset."""
        import xarray as xr

        data = {name: (v.dims, self.arrays[name], dict(v.attrs)) for name, v in self.variables.items()}
        return with_bools(xr.Dataset(data, coords=dict(coords)))


class Store(Memory):
    """Variables in results.zarr, one chunk a block and range of recorded steps; status is a block's last word.

    A run is in the store if its status says so, and that is written after everything else of its block. Every write
    replaces one chunk file in one move, with a checksum inside, so it may be repeated or cut off at any time.

    Args:
      path: results directory.
      variables: {name: Variable}.
      mode: "r" to read only.
    """

    def __init__(self, path: Path, variables: Mapping[str, Variable], mode: Literal["r", "r+"] = "r+"):
        import zarr

        self.path, self.variables = path, variables
        root: Any = zarr.open_group(path / ARRAYS, mode=mode, zarr_format=3)
        self.arrays = {name: root[name].with_config({"write_empty_chunks": True}) for name in variables}

    def write(self, name: str, box: Slices, values: np.ndarray, mine: np.ndarray, records: slice | None = None) -> None:
        """As in memory.

        Raises:
          ValueError: if the system refuses, naming the directory and the reason.
        """
        with named(self.path):
            inside(self.path, next(chunk_files(Path(ARRAYS) / name, self.variables[name], box))[0].parent)
            super().write(name, box, values, mine, records)

    def missing(self, box: Slices) -> np.ndarray:
        """Which runs of a block are not in the store, as a bool array; all of them if its status cannot be read."""
        try:
            return np.asarray(self.arrays["status"][box]) < 0
        except Exception as error:  # whatever zarr and its codecs raise about bytes that are not what was written
            file, _ = next(chunk_files(self.path / ARRAYS / "status", self.variables["status"], box))
            say(f"{file} is damaged: {' '.join(str(error).split())}: its block is run again")
            return np.ones([s.stop - s.start for s in box], bool)

    def damage(self, box: Slices, upto: int | None = None) -> list[str]:
        """What is wrong with a block that should be there: a line for every chunk file that is gone or damaged.

        Args:
          box: the block.
          upto: look only at variables with steps, and only at chunks of recorded steps before this one.
        """
        lines = []
        for name, variable in self.variables.items():
            stepped = "step" in variable.dims
            if upto is not None and not stepped:
                continue
            last = None if upto is None else {variable.dims.index("step"): upto}
            for file, index in chunk_files(self.path / ARRAYS / name, variable, box, last):
                if not file.is_file():
                    lines.append(f"{file} is missing")
                    continue
                try:
                    self.arrays[name][index]
                except Exception as error:  # as above
                    lines.append(f"{file} is damaged: {' '.join(str(error).split())}")
        return lines


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


def _write_template(folder: Path, variables: Mapping[str, Variable], coords: Mapping[str, tuple]) -> dict[str, int]:
    """Writes a store without any chunk of its variables; returns the CRC-32 of every file."""
    import xarray as xr
    import zarr
    from zarr.codecs import ZstdCodec

    with _zarr_warnings():
        codec = ZstdCodec(level=3, checksum=True)
        encoding = {name: {"compressors": [codec]} for name in coords}
        template = xr.Dataset(coords=dict(coords))
        # A store, not a path: xarray expands "~" in paths and drops "..".
        store = zarr.storage.LocalStore(folder)
        template.to_zarr(store, mode="w", consolidated=False, zarr_format=3, encoding=encoding)
        root = zarr.open_group(folder, mode="r+", zarr_format=3)
        for name, v in variables.items():
            root.create_array(
                name, shape=v.shape, dtype=v.dtype, chunks=v.chunks, fill_value=v.fill, compressors=[codec],
                dimension_names=v.dims, attributes=dict(v.attrs),
            )  # fmt: skip
    return {str(f.relative_to(folder)): _crc(f) for f in sorted(folder.rglob("*")) if f.is_file()}


@contextlib.contextmanager
def prepared(
    path: Path, variables: Mapping[str, Variable], coords: Mapping[str, tuple]
) -> Iterator[tuple[Path, dict[str, int]]]:
    """A store's metadata and coordinates beside their place: (folder, CRCs), gone again at the end."""
    folder = path / f"{ARRAYS}.{secrets.token_hex(8)}.partial"
    folder.mkdir()
    try:
        yield folder, _write_template(folder, variables, coords)
    finally:
        remove_prepared(folder)


def put_in_place(path: Path, folder: Path) -> None:
    """Moves prepared metadata and coordinates to their place, file by file; chunks of variables stay."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            target = path / ARRAYS / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


def fill_new_chunks(path: Path, folder: Path, variables: Mapping[str, Variable]) -> None:
    """Prepares the chunks that stored runs have beyond their own sizes, after an extension made an observable longer.

    They hold nothing but the fill value; written, they are told apart from lost ones.

    Args:
      path: results directory with the arrays as they were.
      folder: the prepared store.
      variables: its variables.
    """
    import zarr

    old = stored_variables(path)
    status = read_status(path)
    begun = [box for box in blocks(status.shape, old["status"].chunks) if (status[box] >= 0).any()]
    root: Any = zarr.open_group(folder, mode="r+", zarr_format=3)
    for name, variable in variables.items():
        if name not in old or old[name].shape[status.ndim :] == variable.shape[status.ndim :]:
            continue
        array = root[name].with_config({"write_empty_chunks": True})
        for box in begun:
            for file, index in chunk_files(path / ARRAYS / name, variable, box):
                if not file.exists():
                    array[index] = variable.fill


@contextlib.contextmanager
def _zarr_warnings() -> Iterator[None]:
    """Silences zarr's remark that variable-length strings have no final zarr v3 specification yet."""
    with silence():
        yield


def _crc(file: Path) -> int:
    return zlib.crc32(file.read_bytes())


def damaged_metadata(path: Path, crcs: Mapping[str, int]) -> list[str]:
    """A line for every zarr.json and every coordinate's chunk that is not what the manifest's CRC says.

    Args:
      path: results directory.
      crcs: {file in results.zarr: CRC-32}.
    """
    lines = []
    for name, crc in crcs.items():
        file = path / ARRAYS / name
        if not file.exists() or _crc(file) != crc:
            lines.append(f"{file} is damaged or missing: its CRC is not the manifest's")
    return lines


def stored_variables(path: Path) -> dict[str, Variable]:
    """The variables of a store as its metadata say."""
    import zarr

    root: Any = zarr.open_group(path / ARRAYS, mode="r", zarr_format=3)
    out = {}
    runs = root["status"].metadata.dimension_names
    for name, array in root.arrays():
        dims = tuple(array.metadata.dimension_names or ())
        if name not in dims and dims[: len(runs)] == tuple(runs):
            attrs = dict(array.attrs)
            out[name] = Variable(dims, array.shape, array.dtype, array.fill_value, array.chunks, attrs)
    return out


def blocks(shape: Sequence[int], extents: Sequence[int]) -> list[Slices]:
    """The blocks of a store, in C order.

    Examples:
      >>> [tuple((s.start, s.stop) for s in box) for box in blocks((2, 3), (1, 2))]
      [((0, 1), (0, 2)), ((0, 1), (2, 3)), ((1, 2), (0, 2)), ((1, 2), (2, 3))]
    """
    ranges = [[slice(a, min(a + e, size)) for a in range(0, size, e)] for size, e in zip(shape, extents)]
    return list(itertools.product(*ranges))


def lost_chunks(path: Path, variables: Mapping[str, Variable], status: np.ndarray) -> list[str]:
    """A line for every array that lacks chunk files of runs that are in the store."""
    extents = variables["status"].chunks
    begun = [box for box in blocks(status.shape, extents) if (status[box] >= 0).any()]
    lines = []
    for name, variable in variables.items():
        folder = path / ARRAYS / name
        there = {f for f, _, _ in _walk(folder / "c")}
        expected = [str(file) for box in begun for file, _ in chunk_files(folder, variable, box)]
        lost = sum(file not in there for file in expected)
        if lost:
            lines.append(f"{folder} has {len(expected) - lost} of its {len(expected)} chunks")
    return lines


def _walk(folder: Path) -> Iterator[tuple[str, str, str]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(parent, name), parent, name


def open_results(out: str | os.PathLike) -> Any:
    """Opens a results directory as a lazy xarray.Dataset, after checking its metadata against the manifest's CRCs.

    Chunk checksums guard the numbers when they are read; the CRCs guard shapes, dtypes and fill values. Runs that have
    not run yet have status -1; of them, floats and bools are NaN, signed integers -1, unsigned ones their largest.

    Args:
      out: a results directory, finished or not.

    Returns:
      xarray.Dataset, read lazily, in the definition's order, with the manifest as JSON text in attrs["manifest"].

    Raises:
      ValueError: if `out` is not a results directory.
      UnusableData: if the manifest or some array's metadata is damaged, or chunks of finished runs are gone.

    Examples:
      >>> import jaxsign as js, tempfile
      >>> made = js.Sweep(system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10),
      ...     hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.sign_gd(1e-3)}, axes={"seed": 2}, steps=20)
      >>> with tempfile.TemporaryDirectory() as out:
      ...     _ = js.run_sweep(made, out)
      ...     int((js.open_results(out)["status"] == 0).sum())
      2
    """
    return opened(local_path("out", out).absolute())


def opened(path: Path) -> Any:
    """`open_results` of a path that is not read as a user's any more: a "~" in it is a name like any other."""
    import xarray as xr

    if not is_results(path):
        raise ValueError(f"out must be a results directory with {MANIFEST} and {ARRAYS}, got {str(path)!r}")
    manifest = read_manifest(path)
    assert manifest is not None
    refuse_links(path, manifest, (MANIFEST, ARRAYS))
    broken = damaged_metadata(path, manifest["crc32"])
    if not broken:
        variables, status = stored_variables(path), read_status(path)
        broken = lost_chunks(path, variables, status)
    if broken:
        raise UnusableData(f"{broken[0]}; the sweep's own command mends it")
    with _zarr_warnings():
        begun = [(status[box] >= 0).any() for box in blocks(status.shape, variables["status"].chunks)]
        counts = [-(-size // extent) for size, extent in zip(status.shape, variables["status"].chunks)]
        expected = Expected(path / ARRAYS, manifest["crc32"], variables, np.reshape(begun, counts))
        # A number of seconds stays a number, as it is in memory.
        ds = xr.open_zarr(watched(path / ARRAYS, expected), consolidated=False, chunks=None, decode_times=False)
    strings = {name: c.astype(object) for name, c in ds.coords.items() if c.dtype.kind not in "biuf"}
    ds = ds.assign_coords(strings)  # NumPy's new string dtype does not compare with plain strings everywhere yet
    ds = ds.isel(places(ds["status"].dims, manifest["order"]))
    for name, value in manifest.get("base", {}).items():
        ds = ds.assign_coords({name: value})
    try:
        ds = with_bools(ds)  # which are read here
    except Exception as error:  # whatever zarr and its codecs raise about bytes that are not what was written
        raise UnusableData(f"{path / ARRAYS} cannot be read: {' '.join(str(error).split())}") from None
    ds.attrs["manifest"] = manifest_text(manifest)
    return ds


def places(dims: Sequence[str], order: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """{dimension: stored place of each of the definition's points}, dimensions in order left out.

    Examples:
      >>> places(("snr", "seed"), [[0, 1], [2, 0, 1]])
      {'seed': array([1, 2, 0])}
    """
    return {dim: np.argsort(own) for dim, own in zip(dims, order) if list(own) != sorted(own)}


def read_status(path: Path) -> np.ndarray:
    """The status of every run, in stored order.

    Raises:
      UnusableData: if it cannot be read.
    """
    import zarr

    try:
        return np.asarray(zarr.open_array(path / ARRAYS / "status", mode="r", zarr_format=3)[...])
    except Exception as error:  # whatever zarr and its codecs raise about bytes that are not what was written
        raise UnusableData(f"{path / ARRAYS / 'status'} cannot be read: {' '.join(str(error).split())}") from None
