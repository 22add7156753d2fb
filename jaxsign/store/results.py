"""results.zarr and manifest.json: written once, complete or absent, checked when opened."""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxsign.labelled import manifest_text

ARRAYS, MANIFEST = "results.zarr", "manifest.json"


class UnusableData(Exception):
    """Data on disk that is damaged or not ours; the message names the file."""


def directory(out: str | os.PathLike) -> Path:
    """Checks that `out` can hold results: new, empty, or a results directory.

    Raises:
      ValueError: if it is a file, is not writable, or holds something else.
    """
    path = Path(out)
    with _named(path):
        if path.exists() and not path.is_dir():
            raise ValueError(f"out must be a directory, got the file out={str(path)!r}")
        probe = path
        while not probe.exists():
            probe = probe.parent
        if not probe.is_dir() or not os.access(probe, os.W_OK | os.X_OK):
            raise ValueError(f"out must be a writable directory, got out={str(path)!r} under {str(probe)!r}")
        if path.exists() and not (path / MANIFEST).exists():
            strangers = [entry.name for entry in path.iterdir() if not entry.name.startswith((ARRAYS, MANIFEST))]
            if strangers:
                raise ValueError(
                    f"out must be new, empty or a results directory, got out={str(path)!r} with {min(strangers)!r}"
                )
    return path


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns what the system says against a directory (no such place, no permission, no space) into bad input.

    Raises:
      ValueError: naming the directory and the system's reason.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"out must be a directory that can be made and written, got out={str(path)!r}: {reason}"
        ) from None


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a finished results directory, None if there is none.

    Raises:
      UnusableData: if it is not readable JSON.
    """
    file = path / MANIFEST
    if not file.exists():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnusableData(f"{file} is not a readable manifest: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("definition"), dict):
        raise UnusableData(f"{file} is not a manifest of jaxsign: it has no definition")
    return manifest


def is_results(path: Path) -> bool:
    """Whether a directory holds finished results."""
    return (path / MANIFEST).is_file() and (path / ARRAYS).is_dir()


class Arrays:
    """Pre-allocated variables that blocks write their boxes into, in memory or on disk.

    Args:
      variables: {name: (dims, shape, dtype, fill value, chunk shape, attrs)}.
      coords: {name: (dims, values, attrs)}.
      path: directory of the zarr store, or None for memory.
    """

    def __init__(self, variables: Mapping[str, tuple], coords: Mapping[str, tuple], path: Path | None):
        self._variables, self._coords = variables, coords
        self._arrays: dict[str, Any]
        if path is None:
            self._arrays = {name: np.full(v[1], v[3], v[2]) for name, v in variables.items()}
            return
        import xarray as xr
        import zarr
        from zarr.codecs import ZstdCodec

        with _named(path.parent), _zarr_warnings():
            codec = ZstdCodec(level=3, checksum=True)
            encoding = {name: {"compressors": [codec]} for name in coords}
            template = xr.Dataset(coords=dict(coords))
            template.to_zarr(path, mode="w", consolidated=False, zarr_format=3, encoding=encoding)
            root = zarr.open_group(path, mode="r+", zarr_format=3)
            self._arrays = {
                name: root.create_array(
                    name, shape=shape, dtype=dtype, chunks=chunks, fill_value=fill, compressors=[codec],
                    dimension_names=dims, attributes=dict(attrs), config={"write_empty_chunks": True},
                )
                for name, (dims, shape, dtype, fill, chunks, attrs) in variables.items()
            }  # fmt: skip

    def write(self, name: str, index: tuple[slice, ...], values: np.ndarray) -> None:
        """Writes one block of one variable; trailing dimensions beyond the values' keep their fill value."""
        array = self._arrays[name]
        lead = len(index)
        full = tuple(slice(0, size) for size in values.shape[lead:])
        array[(*index, *full)] = values

    def memory_dataset(self) -> Any:
        """The variables as an xarray.Dataset (memory only)."""
        import xarray as xr

        data = {name: (v[0], self._arrays[name], dict(v[5])) for name, v in self._variables.items()}
        return xr.Dataset(data, coords={name: c for name, c in self._coords.items()})


@contextlib.contextmanager
def _zarr_warnings() -> Iterator[None]:
    """Silences zarr's remark that variable-length strings have no final zarr v3 specification yet."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
        warnings.filterwarnings("ignore", message=".*is currently not part in the Zarr format 3 specification.*")
        yield


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """The directory that arrays are written into before they are complete; gone again if the block raises.

    Raises:
      ValueError: if it cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    partial = path / f"{ARRAYS}.partial"
    try:
        with _named(path):
            partial.mkdir(parents=True, exist_ok=True)
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in missing:  # innermost first; one that holds something else stays
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def finish(path: Path, manifest: dict[str, Any]) -> None:
    """Turns the finished partial store into results.zarr and writes the manifest, each by one atomic rename."""
    partial, final = path / f"{ARRAYS}.partial", path / ARRAYS
    if final.exists():  # a store whose manifest was never written: a run that was killed between the two renames
        shutil.rmtree(final)
    os.replace(partial, final)
    manifest["crc32"] = {str(f.relative_to(final)): _crc(f) for f in sorted(final.rglob("zarr.json"))}
    manifest["chunks"] = _chunks(final)
    temporary = path / f"{MANIFEST}.partial"
    temporary.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path / MANIFEST)


def _chunks(store: Path) -> dict[str, int]:
    """Number of chunk files of every array; a chunk that is gone would read as the fill value."""
    arrays = sorted(folder.name for folder in store.iterdir() if folder.is_dir())
    return {
        name: sum(f.is_file() for f in (store / name / "c").rglob("*")) or int((store / name / "c").is_file())
        for name in arrays
    }


def _crc(file: Path) -> int:
    return zlib.crc32(file.read_bytes())


def open_results(out: str | os.PathLike) -> Any:
    """Opens a results directory as a lazy xarray.Dataset, after checking its metadata against the manifest's CRCs.

    Chunk checksums guard the numbers when they are read; the CRCs guard shapes, dtypes and fill values.

    Args:
      out: a results directory.

    Returns:
      xarray.Dataset, read lazily, with the manifest as JSON text in attrs["manifest"].

    Raises:
      ValueError: if `out` is not a finished results directory.
      UnusableData: if the manifest or some array's metadata is damaged.
    """
    import xarray as xr

    path = Path(out)
    if not is_results(path):
        raise ValueError(f"out must be a finished results directory with {MANIFEST} and {ARRAYS}, got {str(path)!r}")
    manifest = read_manifest(path)
    assert manifest is not None
    for name, crc in manifest.get("crc32", {}).items():
        file = path / ARRAYS / name
        if not file.exists() or _crc(file) != crc:
            raise UnusableData(f"{file} is damaged or missing: its CRC is not the manifest's")
    there = _chunks(path / ARRAYS)
    for name, count in manifest.get("chunks", {}).items():
        if there.get(name, 0) != count:
            raise UnusableData(f"{path / ARRAYS / name} has {there.get(name, 0)} of its {count} chunks")
    with _zarr_warnings():
        ds = xr.open_zarr(path / ARRAYS, consolidated=False, chunks=None)
    strings = {name: c.astype(object) for name, c in ds.coords.items() if c.dtype.kind not in "biuf"}
    ds = ds.assign_coords(strings)  # NumPy's new string dtype does not compare with plain strings everywhere yet
    for name, value in manifest.get("base", {}).items():
        ds = ds.assign_coords({name: value})
    ds.attrs["manifest"] = manifest_text(manifest)
    return ds
