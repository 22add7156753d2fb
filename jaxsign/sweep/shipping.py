"""A sweep as bytes for another process, with the functions that the user's script itself defines."""

import functools
import io
import linecache
import marshal
import pickle
import types
from typing import Any

from jaxsign.sweep.sweep import Sweep


def packed(sweep: Sweep) -> bytes:
    """A sweep as bytes for `unpacked`.

    Functions of a module are sent by name, and the module must be importable in the other process. Functions of
    `__main__` and those without a name are sent by value, together with the text of their file: the sweep's identity
    depends on that text, and another machine may lack the file.

    Raises:
      ValueError: if a part of the sweep cannot be sent.
    """
    import cloudpickle

    texts: dict[str, str] = {}

    class Pickler(cloudpickle.Pickler):
        """Cloudpickle alone would send cached functions by name, and no text of a file."""

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, types.CodeType):
                texts[value.co_filename] = "".join(linecache.getlines(value.co_filename))
                return marshal.loads, (marshal.dumps(value),)
            if isinstance(value, functools._lru_cache_wrapper) and value.__module__ == "__main__":
                parameters = value.cache_parameters()
                return _cached, (value.__wrapped__, parameters["maxsize"], parameters["typed"])
            return super().reducer_override(value)

    stream = io.BytesIO()
    try:
        Pickler(stream).dump(sweep)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(
            f"scheduler= needs a sweep that can be sent to workers, and this one cannot ({' '.join(str(error).split())}"
            "): define what it uses in a module that the workers can import"
        ) from None
    return pickle.dumps((texts, stream.getvalue()))


def unpacked(data: bytes) -> Sweep:
    """The inverse of `packed`. Unpickling runs code of the driver, as all tasks of a Dask worker do."""
    texts, sweep = pickle.loads(data)
    for name, text in texts.items():
        # An entry without a modification time is never replaced by a file at that path on this machine.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return pickle.loads(sweep)


def _cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize=maxsize, typed=typed)(function)
