"""Checkpoints of runs that are under way, by Orbax, with a CRC of every leaf beside them."""

import contextlib
import json
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.store import files
from jaxsign.store.manifest import UnusableData, checksum, to_disk, write_json
from jaxsign.validation.messages import say, silence

FOLDER = files.CHECKPOINTS
#: The newest ones of a block that are kept, so that a damaged one costs a minute and not the block.
KEPT = 2
#: What Orbax reads as something else in a path: a pattern, another separator, a bucket, bytes that are not UTF-8.
_MISREAD = re.compile(r"[\[\]\\\ud800-\udfff]|gs:/")
#: One thread at a time, see `_quiet`.
_ORBAX = threading.RLock()


def save(folder: Path, step: int, state: Any, about: Mapping[str, Any]) -> None:
    """Saves a state; it counts as there once the record beside it is.

    Args:
      folder: the block's own folder.
      step: optimizer step; a checkpoint of the same step is replaced.
      state: pytree of NumPy arrays.
      about: what must be equal for the checkpoint to be used again, as plain JSON.
    """
    from orbax.checkpoint import v1 as ocp

    leaves = [(jax.tree_util.keystr(path), _plain(x)) for path, x in jax.tree_util.tree_flatten_with_path(state)[0]]
    kept = {str(i): x for i, (_, x) in enumerate(leaves) if x.size}  # Orbax refuses arrays without entries
    files.make_folder(folder)
    record = folder / f"{step}.json"
    _clear(folder, step)
    with silence(), _alone(ocp), _reachable(folder) as place:
        ocp.save(place / str(step), kept, overwrite=True)
    described = [[name, list(x.shape), x.dtype.name, _crc(x)] for name, x in leaves]
    written = _files(folder / str(step))
    to_disk(written, folder.parent.parent)
    crcs = {str(f.relative_to(folder)): zlib.crc32(f.read_bytes()) for f in written}
    whole = {"step": step, "about": about, "leaves": described, "files": crcs}
    write_json(record, {**whole, "checksum": checksum(whole)})
    to_disk([record], folder)
    for old in _steps(folder)[:-KEPT]:
        _clear(folder, old)


def _clear(folder: Path, step: int) -> None:
    """Removes a checkpoint, its record first.

    Raises:
      UnusableData: if something else is in its place.
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
    """The newest good checkpoint of a block; damaged ones are reported and passed over.

    Args:
      folder: the block's own folder.
      like: pytree of arrays or abstract arrays with the structure, shapes and dtypes to expect.
      about: what must be equal.

    Returns:
      (step, pytree of NumPy arrays), or None if there is none.
    """
    for step in reversed(_steps(folder)):
        found, reason = _load(folder, step, like, about)
        if found is not None:
            return step, found
        say(f"{folder / str(step)}: not used: {reason}")
    return None


def export(folder: Path, params: Any) -> None:
    """Saves parameters as a plain Orbax checkpoint, which needs no jaxsign to be read.

    Raises:
      ValueError: if `folder` exists, cannot be made, or has a path that Orbax itself would not find again.
    """
    from orbax.checkpoint import v1 as ocp

    if os.path.lexists(folder):
        raise ValueError(f"folder must be new, got {str(folder)!r}")
    if odd := _MISREAD.search(str(folder.absolute())):
        raise ValueError(f"folder must have a path that Orbax can read, without {odd[0]!r}, got {str(folder)!r}")
    try:
        with silence(), _alone(ocp):
            ocp.save(folder.absolute(), params)
    except OSError as error:
        raise ValueError(f"folder={str(folder)!r} cannot be made: {error.strerror or error}") from None


def remove(folder: Path) -> None:
    """Removes the checkpoints of a block whose results are stored."""
    files.remove(folder, files.BLOCK)
    with contextlib.suppress(OSError):  # the last block's takes the folder of all with it
        folder.parent.rmdir()


def remove_all(folder: Path) -> None:
    """Removes what is left of checkpoints once every run is stored, such as those of blocks that are numbered anew."""
    for block in files.own_folders(folder):
        files.remove(block, files.BLOCK)
    with contextlib.suppress(OSError):  # what is somebody else's stays, and the folder with it
        folder.rmdir()


def damage(folder: Path) -> list[str]:
    """A line for every damaged checkpoint below a folder."""
    lines = []
    for record in sorted(folder.rglob("*.json")):
        if not record.stem.isdigit():
            continue
        reason = _load(record.parent, int(record.stem), None, None)[1]
        if reason:
            lines.append(f"{record.parent / record.stem}: {reason}")
    return lines


def records(path: Path) -> list[Path]:
    """The records of all checkpoints of a results directory, by block and step."""
    paths = [record for record in files.files_below(path / FOLDER, "*.json") if record.stem.isdecimal()]
    return sorted(paths, key=lambda record: (record.parent.name, int(record.stem)))


def _steps(folder: Path) -> list[int]:
    return sorted(int(f.stem) for f in folder.glob("*.json") if f.stem.isdigit())


def _plain(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array, a typed key as its words."""
    return np.asarray(_words(leaf))


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _load(folder: Path, step: int, like: Any, about: Mapping[str, Any] | None) -> tuple[Any, str]:
    """(state, ""), or (None, why it cannot be used); with like=None it is only checked."""
    from orbax.checkpoint import v1 as ocp

    try:
        whole = json.loads((folder / f"{step}.json").read_text())
        if whole["checksum"] != checksum(whole):
            return None, "its record is damaged"
        if whole["step"] != step:
            return None, f"its record is of step {whole['step']}"
        described = whole["leaves"]
        if about is not None and whole["about"] != about:
            return None, "it is of another definition, plan or set of runs"
    except OSError as error:
        return None, f"its record cannot be read: {error.strerror or error}"
    except (ValueError, KeyError, TypeError) as error:
        return None, f"its record is damaged: {error}"
    expected = [] if like is None else jax.tree_util.tree_flatten_with_path(like)[0]
    words = [(jax.tree_util.keystr(path), _shape_of_words(leaf)) for path, leaf in expected]
    wanted = [[name, list(x.shape), np.dtype(x.dtype).name] for name, x in words]
    found = [entry[:3] for entry in described]
    if like is not None and wanted != found:
        first = next((pair for pair in zip(found, wanted) if pair[0] != pair[1]), (len(found), len(wanted)))
        return None, f"its arrays have another structure, other shapes or dtypes: {first[0]}, not {first[1]}"
    for name, crc in whole["files"].items():  # Orbax itself does not notice all of it, nor say so in one line
        file = folder / name
        try:
            good = file.is_file() and zlib.crc32(file.read_bytes()) == crc
        except OSError as error:
            return None, f"its file {name} cannot be read: {error.strerror or error}"
        if not good:
            return None, f"its file {name} is missing or does not have the CRC that it was saved with"
    full = {str(i): (shape, jnp.dtype(dtype)) for i, (_, shape, dtype, _) in enumerate(described) if 0 not in shape}
    try:
        abstract = {name: np.empty(*entry) for name, entry in full.items()}
        with silence(), _alone(ocp), _reachable(folder) as place:
            loaded = ocp.load(place / str(step), abstract)
        leaves = [np.asarray(loaded.get(str(i), np.empty(d[1], jnp.dtype(d[2])))) for i, d in enumerate(described)]
    except MemoryError:
        raise
    except Exception as error:  # Orbax and its stores raise many kinds about bytes that are not what was written
        return None, f"it cannot be read: {' '.join(str(error).split())[:200]}"
    for leaf, (name, shape, dtype, crc) in zip(leaves, described):
        if list(leaf.shape) != shape or leaf.dtype.name != dtype or _crc(leaf) != crc:
            return None, f"leaf {name} does not have the CRC that it was saved with"
    if like is None:
        return None, ""
    typed = [_typed(words, leaf) for words, (_, leaf) in zip(leaves, expected)]
    return jax.tree.unflatten(jax.tree.structure(like), typed), ""


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _shape_of_words(leaf: Any) -> Any:
    """Shape and dtype of what is saved of a leaf."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.eval_shape(_words, leaf) if is_key else leaf


def _words(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _typed(words: Any, like: Any) -> Any:
    """Words of a key as the key that they were."""
    if not jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return words
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(jnp.empty(like.shape, like.dtype)))


@contextlib.contextmanager
def _reachable(folder: Path) -> Iterator[Path]:
    """A folder under a path that Orbax takes as it is."""
    if not _MISREAD.search(str(folder.absolute())):
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="jaxsign-") as plain:
        link = Path(plain) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


@contextlib.contextmanager
def _alone(ocp: Any) -> Iterator[None]:
    """Makes Orbax wait for no other process of `jax.distributed`: blocks belong to one process each.

    Orbax can be told which processes take part, but before every save it still asks all of them whether they agree on
    the path (0.12), unless there is only one.
    """
    if jax.process_count() == 1:
        yield
        return
    me, count = jax.process_index(), jax.process_count
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}-{os.getpid()}"
    )
    jax.process_count = lambda *backend: 1
    try:
        with ocp.Context(multiprocessing_options=options):
            yield
    finally:
        jax.process_count = count
