"""How are results named that are captured where the training loss crosses a level? With which coordinates?"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxsign.validation.values import real, representable

#: Ends the names of captured variables.
SUFFIX = "_at_level"
#: Dimensions of captured variables after the runs': the level, and the step before or at the crossing.
DIMS = ("level", "crossing")
CROSSING = ("before", "at")


def check_levels(levels: Any) -> tuple[float, ...]:
    """Levels of the training loss as floats, highest first.

    Args:
      levels: distinct numbers > 0 that the default float can hold, in nat; () for none.

    Raises:
      ValueError: naming the value and the legal range.

    Examples:
      >>> check_levels([0.1, 0.5])
      (0.5, 0.1)
    """
    if isinstance(levels, (str, Mapping)) or np.ndim(levels) != 1:
        raise ValueError(f"levels must be a list of training losses > 0, got levels={levels!r}")
    checked = sorted((real("levels", level, 0.0, open_low=True) for level in levels), reverse=True)
    for level in checked:
        representable("levels", level, np.dtype(jax.dtypes.canonicalize_dtype(float)))
    for level in checked:
        if checked.count(level) > 1:
            raise ValueError(f"levels must be distinct training losses, got {level!r} twice")
    return tuple(checked)


def captured_names(observables: Iterable[str]) -> set[str]:
    """Names of the variables for the captured values of these observables.

    Examples:
      >>> sorted(captured_names(["test_error"]))
      ['step_at_level', 'test_error_at_level', 'train_loss_at_level']
    """
    return {f"{name}{SUFFIX}" for name in ("step", "train_loss", *observables)}


def coordinates(levels: tuple[float, ...]) -> dict[str, tuple[tuple[str, ...], Any, dict[str, str]]]:
    """The coordinates of captured variables: {name: (dims, values, attrs)}; none without levels."""
    if not levels:
        return {}
    return {
        "level": (("level",), np.array(levels, float), {"long_name": "level of the training loss", "units": "nat"}),
        "crossing": (("crossing",), np.array(CROSSING, object), {"long_name": "step before the crossing, or its own"}),
    }


def observable(name: str) -> str:
    """The observable of a captured variable's name; other names are returned unchanged.

    Examples:
      >>> observable("test_error_at_level"), observable("test_error")
      ('test_error', 'test_error')
    """
    return name.removesuffix(SUFFIX)
