"""How are IDX files, the format of the MNIST database, read? Plain or gzipped, with every length checked."""

import gzip
import io
import math
import os
import zlib
from pathlib import Path

import numpy as np

from jaxsign.validation.values import local_path

#: Third byte of an IDX file of unsigned bytes.
UNSIGNED_BYTE = 8
#: The largest number of bytes that one byte of a gzip file can hold.
DEFLATED = 1032


def read(path: str | os.PathLike) -> np.ndarray:
    """One IDX file of unsigned bytes.

        magic 0 0 8 k, then k sizes of 4 bytes (big-endian), then the bytes themselves, the last index fastest

    Args:
      path: the file; gzipped if its name ends in .gz.

    Returns:
      uint8 array of the k sizes that the file states.

    Raises:
      ValueError: naming the file and what is wrong with it: unreadable, bad magic, truncated, or too long.

    Examples:
      >>> from pathlib import Path
      >>> _ = Path("x-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
      >>> read("x-idx1-ubyte").tolist()
      [7, 9]

    References:
      LeCun, Cortes and Burges, the MNIST database, "file formats".
    """
    path = local_path("path", path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(path, file)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from None


def _read(path: Path, file: io.BufferedIOBase) -> np.ndarray:
    """The array of an open file, of which no more bytes are read than its header promises."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != bytes([0, 0, UNSIGNED_BYTE]) or magic[3] == 0:
        raise ValueError(
            f"{path} is no IDX file of unsigned bytes: it must begin with 0 0 8 and its dimensions, got {list(magic)}"
        )
    dimensions = magic[3]
    begin = 4 + 4 * dimensions
    header = file.read(begin - 4)
    if len(header) < begin - 4:
        raise ValueError(f"{path} is truncated: {4 + len(header)} bytes, and its header alone has {begin}")
    sizes = tuple(int.from_bytes(header[4 * i : 4 * i + 4], "big") for i in range(dimensions))
    length = math.prod(sizes)
    expected = f"instead of {begin + length} for the shape {sizes}"
    stored, zipped = path.stat().st_size, path.suffix == ".gz"
    # These checks come before memory is allocated for the content.
    if not zipped and stored != begin + length:
        raise ValueError(
            f"{path} is {'truncated' if stored < begin + length else 'too long'}: {stored} bytes {expected}"
        )
    if zipped and begin + length > DEFLATED * stored:
        raise ValueError(f"{path} is truncated: {stored} bytes hold {DEFLATED * stored} at most, {expected}")
    try:
        content = file.read(length + 1)
    except MemoryError:
        raise ValueError(f"{path} says that it holds {length} bytes, for which there is no memory") from None
    if len(content) > length:
        raise ValueError(f"{path} is too long: more bytes {expected}")
    if len(content) < length:
        raise ValueError(f"{path} is truncated: {begin + len(content)} bytes {expected}")
    return np.frombuffer(content, np.uint8).reshape(sizes)


def find(directory: str | os.PathLike, stem: str) -> Path:
    """The file of this name in a directory, plain or, if there is none, gzipped.

    Raises:
      ValueError: if there is neither.
    """
    plain = local_path("data_dir", directory) / stem
    for path in (plain, plain.with_name(f"{stem}.gz")):
        if path.is_file():
            return path
    raise ValueError(f"{plain} is missing, plain and as {stem}.gz")
