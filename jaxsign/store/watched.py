"""results.zarr read lazily: what is lost or moved while a Dataset of it is open is an error, not the fill value."""

import functools
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxsign.store.manifest import UnusableData


class Expected:
    """Which files of a store there must be, as they were when it was opened.

    zarr reads a chunk without a file as the fill value. That is right for blocks that have not run, and for them alone.

    Args:
      arrays: the folder of the arrays.
      files: files that there always must be, such as coordinates, by their names in `arrays`.
      variables: names of the variables with a chunk for every block.
      begun: for every block of the grid, whether some run of it is stored.
    """

    def __init__(self, arrays: Path, files: Collection[str], variables: Iterable[str], begun: np.ndarray):
        self.arrays, self.files, self.variables, self.begun = arrays, frozenset(files), frozenset(variables), begun
        self.identity = os.stat(arrays).st_dev, os.stat(arrays).st_ino

    def in_place(self) -> None:
        """Raises UnusableData if the folder is gone, or another one is in its place."""
        try:
            here = os.stat(self.arrays)
        except OSError as error:
            raise UnusableData(
                f"{self.arrays} was moved or removed while its results were open: {error.strerror or error}"
            ) from None
        if (here.st_dev, here.st_ino) != self.identity:
            raise UnusableData(f"{self.arrays} was replaced while its results were open: open them again")

    def needed(self, key: str) -> bool:
        """Whether there must be a file of this name by now: the status of a block is written after all the rest."""
        name, _, place = key.partition("/c/")
        if name not in self.variables or not place:
            return key in self.files
        block = place.split("/")[: self.begun.ndim]
        return bool(self.begun[tuple(map(int, block))]) or self.arrays.joinpath("status", "c", *block).exists()

    def there(self, key: str, found: Any) -> None:
        """Raises UnusableData if a needed file was not found."""
        if found is None:
            raise UnusableData(
                f"{self.arrays / key} was lost while its results were open; the sweep's own command mends it"
            )


def watched(arrays: Path, expected: Expected) -> Any:
    """The folder as a read-only zarr store that raises UnusableData where `expected` does."""
    return _store_class()(arrays, read_only=True, expected=expected)


@functools.cache
def _store_class() -> type:
    """The class, made late: zarr takes half a second to import."""
    from zarr.storage import LocalStore

    class Watched(LocalStore):
        def __init__(self, root: Path | str, *, read_only: bool = True, expected: Expected):
            super().__init__(root, read_only=read_only)
            self.expected = expected

        def with_read_only(self, read_only: bool = True) -> Any:
            return type(self)(self.root, read_only=read_only, expected=self.expected)

        def __reduce__(self) -> Any:  # a class inside a function has no name to be pickled by
            return watched, (self.root, self.expected)

        async def get(self, key: str, *arguments: Any, **keywords: Any) -> Any:
            found = await super().get(key, *arguments, **keywords)
            self.expected.in_place()
            if found is None and self.expected.needed(key):
                # Once more: a sweep under way may just have written it.
                found = await super().get(key, *arguments, **keywords)
                self.expected.there(key, found)
            return found

        def get_sync(self, key: str, **keywords: Any) -> Any:
            found = super().get_sync(key, **keywords)
            self.expected.in_place()
            if found is None and self.expected.needed(key):
                found = super().get_sync(key, **keywords)
                self.expected.there(key, found)
            return found

    return Watched
