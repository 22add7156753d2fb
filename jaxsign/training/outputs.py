"""Checks of the dicts that a task's functions and summaries return, while they are traced."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.store.levels import SUFFIX
from jaxsign.validation import names
from jaxsign.validation.values import one_line

Array = jax.Array


def outputs(kind: str, returned: Any) -> dict[str, Array]:
    """Checks what a function returned, and makes arrays of its numbers.

    Args:
      kind: "observable", "summary" or "constant", for messages.
      returned: the returned value, which should be {name: array or number}.

    Returns:
      {name: array}.

    Raises:
      ValueError: naming kind, name and value: for anything but a dict, a name that results cannot have (see
        `jaxsign.validation.names.result_name`), or a value that is no array of real numbers or bools, is empty, or is a
        number of the host that the device's dtype cannot hold.

    Examples:
      >>> outputs("summary", {"last": jnp.ones(())})["last"].shape
      ()
    """
    if not isinstance(returned, Mapping):
        raise ValueError(f"{kind} must be a dict of name: array, got {_words(returned)}")
    for name in returned:
        if isinstance(name, str) and name.endswith(SUFFIX):
            raise ValueError(
                f"{kind} {name!r} must not end with {SUFFIX!r}, which names what levels capture: rename it"
            )
    return {names.result_name(kind, name): output(kind, name, value) for name, value in returned.items()}


def output(kind: str, name: str, value: Any) -> Array:
    """One checked value, see `outputs`."""
    if not isinstance(value, (bool, int, float, complex, np.generic, np.ndarray, jax.Array)):
        raise ValueError(f"{kind} {name!r} must be an array of numbers, got {_words(value)}")
    dtype = value.dtype if hasattr(value, "dtype") else np.result_type(type(value))
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        raise ValueError(f"{kind} {name!r} must be an array of numbers, got a key: give jax.random.key_data of it")
    if jax.dtypes.issubdtype(dtype, np.complexfloating):
        raise ValueError(
            f"{kind} {name!r} must be an array of real numbers, got {dtype}: give its real and imaginary part"
        )
    if not any(jax.dtypes.issubdtype(dtype, legal) for legal in (np.bool_, np.integer, np.floating)):
        raise ValueError(f"{kind} {name!r} must be an array of numbers, got dtype {dtype}")
    if np.size(value) == 0:
        raise ValueError(f"{kind} {name!r} must hold a number at least, got the shape {np.shape(value)}")
    if jax.dtypes.issubdtype(dtype, np.integer) and dtype.itemsize * 8 != jnp.iinfo(dtype).bits:
        raise ValueError(f"{kind} {name!r} must be of whole bytes, got dtype {dtype}: give it as int8")
    if not isinstance(value, jax.Array):  # a number of the host, which JAX cuts to its own dtype without a word
        kept = jax.dtypes.canonicalize_dtype(dtype)
        with np.errstate(all="ignore"):
            same = np.asarray(value).astype(kept)
        lost = np.isinf(same) & np.isfinite(value) if same.dtype.kind == "f" else same != np.asarray(value)
        if np.any(lost):
            raise ValueError(f"{kind} {name!r} does not fit {kept.name}, got {_words(value)}")
        return jnp.asarray(same)
    return value


def _words(value: Any) -> str:
    text = one_line(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
