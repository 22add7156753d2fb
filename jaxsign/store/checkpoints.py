"""How are runs under way kept on disk: checkpoints by Orbax, each with a record of CRCs beside it."""

import contextlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.store import files
from jaxsign.store.manifest import UnusableData, checksum, to_disk, write_checked_json
from jaxsign.validation.messages import say, silence

FOLDER = files.CHECKPOINTS
#: Number of checkpoints kept of a block: a damaged one then costs a minute and not the block.
KEPT = 2
#: Parts of a path that Orbax misreads: patterns, another separator, buckets, bytes that are not UTF-8.
_MISREAD = re.compile(r"[\[\]\\\ud800-\udfff]|gs:/")


class Leaf(NamedTuple):
    """One leaf of a saved state, as the checkpoint's record describes it.

    Args:
      name: its path in the state.
      shape: of its array, without typed keys.
      dtype: its name.
      crc: CRC-32 of the array's bytes.
    """

    name: str
    shape: list[int]
    dtype: str
    crc: int


class _Unusable(Exception):
    """A checkpoint that cannot be used; the message says why."""


def save(folder: Path, step: int, state: Any, about: Mapping[str, Any]) -> None:
    """Saves a state; it counts once the record beside it is written.

    Args:
      folder: the block's own folder.
      step: optimizer step; a checkpoint of the same step is replaced.
      state: pytree of NumPy arrays.
      about: plain JSON that must be equal for the checkpoint to be used again.
    """
    from orbax.checkpoint import v1 as ocp

    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    leaves = [(jax.tree_util.keystr(path), np.asarray(_untyped(x))) for path, x in paths]
    arrays = {str(i): x for i, (_, x) in enumerate(leaves) if x.size}  # Orbax refuses arrays without entries
    files.make_folder(folder)
    record = folder / f"{step}.json"
    _clear(folder, step)
    with silence(), _single_process(ocp), _readable(folder) as readable:
        ocp.save(readable / str(step), arrays, overwrite=True)
    described = [Leaf(name, list(x.shape), x.dtype.name, _crc(x)) for name, x in leaves]
    written = files.files_below(folder / str(step), "*")
    to_disk(written, folder.parent.parent)
    crcs = {str(f.relative_to(folder)): zlib.crc32(f.read_bytes()) for f in written}
    write_checked_json(record, {"step": step, "about": about, "leaves": described, "files": crcs})
    to_disk([record], folder)
    for old in _steps(folder)[:-KEPT]:
        _clear(folder, old)


def _clear(folder: Path, step: int) -> None:
    """Removes a checkpoint, its record first.

    Raises:
      UnusableData: if another program's file or folder has its name.
    """
    record, state = folder / f"{step}.json", folder / str(step)
    if os.path.lexists(record):
        if not files.is_own(record):
            raise UnusableData(f"{record} is in the place of a checkpoint's record, and is none: move it away")
        record.unlink()
    files.remove(state, files.STATE)
    if os.path.lexists(state):
        raise UnusableData(f"{state} is in the place of a checkpoint and holds something else: move it away")


def load(folder: Path, like: Any, about: Mapping[str, Any]) -> tuple[int, Any] | None:
    """The newest usable checkpoint of a block; stderr names those that are passed over, and why.

    Args:
      folder: the block's own folder.
      like: pytree of arrays or abstract arrays with the structure, shapes and dtypes to expect.
      about: as it was given to `save`.

    Returns:
      (step, pytree of NumPy arrays), or None if there is none.
    """
    for step in reversed(_steps(folder)):
        try:
            return step, _load(folder, step, like, about)
        except _Unusable as reason:
            say(f"{folder / str(step)}: not used: {reason}")
    return None


def export(folder: Path, params: Any) -> None:
    """Saves parameters as a plain Orbax checkpoint, which is read without jaxsign.

    Raises:
      ValueError: if `folder` exists, cannot be made, or has a path that Orbax itself would not find again.
    """
    from orbax.checkpoint import v1 as ocp

    if os.path.lexists(folder):
        raise ValueError(f"folder must be new, got {str(folder)!r}")
    if odd := _MISREAD.search(str(folder.absolute())):
        raise ValueError(f"folder must have a path that Orbax can read, without {odd[0]!r}, got {str(folder)!r}")
    try:
        with silence(), _single_process(ocp):
            ocp.save(folder.absolute(), params)
    except OSError as error:
        raise ValueError(f"folder={str(folder)!r} cannot be made: {error.strerror or error}") from None


def remove(folder: Path) -> None:
    """Removes the checkpoints of a block once its results are stored."""
    files.remove(folder, files.BLOCK)
    with contextlib.suppress(OSError):  # not empty yet: the folder goes with the last block
        folder.parent.rmdir()


def remove_all(folder: Path) -> None:
    """Removes all checkpoints once every run is stored: an extension may have left some under old block numbers."""
    for block in files.own_folders(folder):
        files.remove(block, files.BLOCK)
    with contextlib.suppress(OSError):  # other programs' files stay, and the folder with them
        folder.rmdir()


def damage(folder: Path) -> list[str]:
    """A line for every damaged checkpoint below a folder."""
    lines = []
    for record in sorted(folder.rglob("*.json")):
        if not record.stem.isdigit():
            continue
        try:
            _read(record.parent, int(record.stem), _record(record.parent, int(record.stem)))
        except _Unusable as reason:
            lines.append(f"{record.parent / record.stem}: {reason}")
    return lines


def records(path: Path) -> list[Path]:
    """The records of all checkpoints of a results directory, by block and step."""
    paths = [record for record in files.files_below(path / FOLDER, "*.json") if record.stem.isdecimal()]
    return sorted(paths, key=lambda record: (record.parent.name, int(record.stem)))


def _steps(folder: Path) -> list[int]:
    return sorted(int(f.stem) for f in folder.glob("*.json") if f.stem.isdigit())


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _load(folder: Path, step: int, like: Any, about: Mapping[str, Any]) -> Any:
    """The state of one checkpoint, with the structure of `like`.

    Raises:
      _Unusable: if it is damaged or of something else.
    """
    record = _record(folder, step)
    if record["about"] != about:
        raise _Unusable("it is of another definition, plan or set of runs")
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    shapes = [(jax.tree_util.keystr(path), _shape_of_untyped(leaf)) for path, leaf in paths]
    wanted = [[name, list(x.shape), np.dtype(x.dtype).name] for name, x in shapes]
    saved = [[leaf.name, leaf.shape, leaf.dtype] for leaf in record["leaves"]]
    if wanted != saved:
        first = next((pair for pair in zip(saved, wanted) if pair[0] != pair[1]), (len(saved), len(wanted)))
        raise _Unusable(f"its arrays have another structure, other shapes or dtypes: {first[0]}, not {first[1]}")
    arrays = _read(folder, step, record)
    return jax.tree.unflatten(structure, [_typed(array, leaf) for array, (_, leaf) in zip(arrays, paths)])


def _record(folder: Path, step: int) -> dict[str, Any]:
    """The record beside a checkpoint, with its leaves as `Leaf`.

    Raises:
      _Unusable: if it is damaged.
    """
    try:
        record = json.loads((folder / f"{step}.json").read_text())
        if record["checksum"] != checksum(record):
            raise _Unusable("its record is damaged")
        if record["step"] != step:
            raise _Unusable(f"its record is of step {record['step']}")
        leaves = [Leaf(*leaf) for leaf in record["leaves"]]
        return {"about": record["about"], "leaves": leaves, "files": record["files"]}
    except OSError as error:
        raise _Unusable(f"its record cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _Unusable(f"its record is damaged: {error}") from None


def _read(folder: Path, step: int, record: Mapping[str, Any]) -> list[np.ndarray]:
    """The arrays of a checkpoint, after the CRCs of its files and of the arrays were checked.

    Raises:
      _Unusable: if a file or an array is damaged.
    """
    from orbax.checkpoint import v1 as ocp

    for name, crc in record["files"].items():  # Orbax does not notice all damage, nor report it in one line
        file = folder / name
        try:
            good = file.is_file() and zlib.crc32(file.read_bytes()) == crc
        except OSError as error:
            raise _Unusable(f"its file {name} cannot be read: {error.strerror or error}") from None
        if not good:
            raise _Unusable(f"its file {name} is missing or does not have the CRC that it was saved with")
    leaves: list[Leaf] = record["leaves"]
    try:
        empty = [np.empty(leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves]
        with silence(), _single_process(ocp), _readable(folder) as readable:
            loaded = ocp.load(readable / str(step), {str(i): x for i, x in enumerate(empty) if x.size})
        arrays = [np.asarray(loaded.get(str(i), x)) for i, x in enumerate(empty)]
    except MemoryError:
        raise
    except Exception as error:  # Orbax and its stores raise many kinds about bytes that were changed
        raise _Unusable(f"it cannot be read: {' '.join(str(error).split())[:200]}") from None
    for array, leaf in zip(arrays, leaves):
        if list(array.shape) != leaf.shape or array.dtype.name != leaf.dtype or _crc(array) != leaf.crc:
            raise _Unusable(f"leaf {leaf.name} does not have the CRC that it was saved with")
    return arrays


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _untyped(leaf: Any) -> Any:
    """A typed key as an array of its words; any other leaf as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _shape_of_untyped(leaf: Any) -> Any:
    return jax.eval_shape(_untyped, leaf) if _is_key(leaf) else leaf


def _typed(array: Any, like: Any) -> Any:
    """The words of a key as a typed key again."""
    if not _is_key(like):
        return array
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.empty(like.shape, like.dtype)))


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[Path]:
    """A path of a folder that Orbax does not misread, by way of a link if need be."""
    if not _MISREAD.search(str(folder.absolute())):
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="jaxsign-") as plain:
        link = Path(plain) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


@contextlib.contextmanager
def _single_process(ocp: ModuleType) -> Iterator[None]:
    """Makes Orbax wait for no other process of `jax.distributed`, since every block belongs to one process.

    `active_processes` is not enough. Up to Orbax 0.12.8 at least, `_check_directory_consistency` asks all processes
    before a save whether they agree on the path, unless `jax.process_count()` is 1: the save would wait for processes
    that save nothing, and fail. So the count is replaced until Orbax is done.
    """
    if jax.process_count() == 1:
        yield
        return
    me, process_count = jax.process_index(), jax.process_count
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}-{os.getpid()}"
    )
    jax.process_count = lambda *backend: 1
    try:
        with ocp.Context(multiprocessing_options=options):
            yield
    finally:
        jax.process_count = process_count
