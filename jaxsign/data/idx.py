"""IDX files, the format of the MNIST database, plain or gzipped: read with every length checked, nothing executed."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from jaxsign.validation import local_path

#: Third byte of an IDX file of unsigned bytes.
UNSIGNED_BYTE = 8


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
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from None
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTE]) or content[3] == 0:
        raise ValueError(
            f"{path} is no IDX file of unsigned bytes: it must begin with 0 0 8 and its dimensions, "
            f"got {list(content[:4])}"
        )
    dimensions = content[3]
    begin = 4 + 4 * dimensions
    if len(content) < begin:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, and its header alone has {begin}")
    sizes = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    length = begin + math.prod(sizes)
    if len(content) != length:
        word = "truncated" if len(content) < length else "too long"
        raise ValueError(f"{path} is {word}: {len(content)} bytes instead of {length} for the shape {sizes}")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(sizes)


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
