"""A sweep on its way to another process: what the user's script itself defines goes along, with its text."""

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

    Modules go by name, as always, and must be importable there. Functions of `__main__` and those without a name go by
    value. Their text goes along: a function is recognised by it, also on a machine that does not have the file.

    Raises:
      ValueError: if something of it cannot be sent.
    """
    import cloudpickle

    texts: dict[str, str] = {}

    class Pickler(cloudpickle.Pickler):
        """Cloudpickle, which sends a cached function by name only, and no code's file."""

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, types.CodeType):
                texts[value.co_filename] = "".join(linecache.getlines(value.co_filename))
                return marshal.loads, (marshal.dumps(value),)
            if isinstance(value, functools._lru_cache_wrapper) and value.__module__ == "__main__":
                how = value.cache_parameters()
                return _cached, (value.__wrapped__, how["maxsize"], how["typed"])
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
    """The sweep that `packed` was given; it comes from the driver, as all code that a Dask worker runs."""
    texts, sweep = pickle.loads(data)
    for name, text in texts.items():
        # Without a time, an entry is kept whatever lies at that path on this machine.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return pickle.loads(sweep)


def _cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize=maxsize, typed=typed)(function)
