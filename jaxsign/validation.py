"""Bad input ends here: one clear line that names the field, the value and its legal range."""

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any


def positive_int(field: str, value: Any, minimum: int = 1) -> int:
    """Returns `value` as an int >= `minimum`; floats and bools are refused, never rounded.

    Args:
      field: name shown in the message.
      value: anything.
      minimum: smallest legal value.

    Returns:
      The value as a plain Python int.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> positive_int("n", 20)
      20
    """
    legal = f"{field} must be an int >= {minimum}, got {field}={value!r}"
    if isinstance(value, bool):
        raise ValueError(legal)
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(legal) from None
    if number < minimum:
        raise ValueError(legal)
    return number


def real(
    field: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Returns `value` as a finite float in [low, high], without the ends that are open.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> real("sigma_p", 2, low=0.0)
      2.0
    """
    left = "(" if open_low or low == -math.inf else "["
    right = ")" if open_high or high == math.inf else "]"
    legal = f"{field} must be a finite number in {left}{low:g}, {high:g}{right}, got {field}={value!r}"
    if isinstance(value, (bool, str)) or value is None:
        raise ValueError(legal)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(legal) from None
    at_open_end = (open_low and number == low) or (open_high and number == high)
    if not math.isfinite(number) or number < low or number > high or at_open_end:
        raise ValueError(legal)
    return number


def known(kind: str, name: Any, names: Iterable[str]) -> str:
    """Returns `name` if it is one of `names`; otherwise the error names the nearest legal one.

    Raises:
      ValueError: naming the value, the nearest valid name and all valid names.

    Examples:
      >>> known("supports", "disjoint", ["independent", "disjoint"])
      'disjoint'
    """
    names = list(names)
    if isinstance(name, str) and name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}{hint} (legal: {', '.join(map(repr, names))})")


def name_tuple(field: str, value: Any) -> tuple[Any, ...] | None:
    """Returns a sequence of names as a tuple, None as None; a bare string would be split into letters and is refused.

    Raises:
      ValueError: naming field and value.

    Examples:
      >>> name_tuple("trainable", ["w_v"])
      ('w_v',)
    """
    if isinstance(value, str):
        raise ValueError(f"{field} must be a tuple of names such as ({value!r},), got the string {field}={value!r}")
    return None if value is None else tuple(value)
