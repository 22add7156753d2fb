"""Checks of arguments: bad input is refused in one line that names the field, the value and its legal range."""

import contextlib
import dataclasses
import difflib
import math
import numbers
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

#: "s3://bucket/x", also after Path has made "s3:/bucket/x" of it, "simplecache::s3://bucket/x", "C:\\x".
_ELSEWHERE = re.compile(r"(?:[\w+.-]+::)*[A-Za-z][A-Za-z0-9+.-]*:[/\\]")

Record = TypeVar("Record")

#: The most values of an axis or a keyword, seeds, or recorded steps: a manifest lists them all.
LONGEST = 2**20
#: The most runs of a sweep.
RUNS = 10**8


def length_of(values: Any) -> int:
    """The number of values where it is known before they are made; otherwise 0.

    Examples:
      >>> length_of(range(10**30)) > LONGEST, length_of([1, 2]), length_of(iter([1]))
      (True, 2, 0)
    """
    try:
        return len(values)
    except TypeError:
        return 0
    except OverflowError:  # a range longer than Python can count
        return LONGEST + 1


def short_enough(field: str, count: int, remedy: str = "") -> None:
    """Checks the number of values of a field before they are made.

    Raises:
      ValueError: naming field, count and limit.

    Examples:
      >>> short_enough("axis 'snr'", 3)
    """
    if count > LONGEST:
        raise ValueError(f"{field} must have at most {LONGEST:,} values, got {count:,}{'; ' * bool(remedy)}{remedy}")


def exact(field: str, value: Any, dtype: Any) -> None:
    """Checks that a float dtype holds an integer exactly; only floats may be rounded.

    Raises:
      ValueError: naming field, value and what it becomes.

    Examples:
      >>> exact("n", 2**24, np.float32)
    """
    if type(value) is not int:
        return
    with np.errstate(all="ignore"):
        rounded = float(np.asarray(float(value), dtype))
    if rounded != value:
        shown = int(rounded) if math.isfinite(rounded) else rounded
        raise ValueError(f"{field}={value} becomes {shown} in {np.dtype(dtype).name}: {_remedy(dtype)}")


def instance(field: str, value: Any, kind: type[Record]) -> Record:
    """Returns `value` if it is a record of a public class such as `js.Problem`.

    Raises:
      ValueError: naming field, class and value.

    Examples:
      >>> import jaxsign as js
      >>> instance("problem", 3, js.Problem)
      Traceback (most recent call last):
      ValueError: problem must be a js.Problem, got problem=3
    """
    if not isinstance(value, kind):
        raise ValueError(f"{field} must be a js.{kind.__name__}, got {field}={value!r}")
    return value


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
    legal = f"{field} must be an int >= {minimum}, got {field}={one_line(value)}"
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
    legal = f"{field} must be a finite number in {left}{low:g}, {high:g}{right}, got {field}={one_line(value)}"
    value = plain_number(field, value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(legal)
    try:
        number = float(value)
    except OverflowError:  # an int beyond the largest float
        raise ValueError(legal) from None
    at_open_end = (open_low and number == low) or (open_high and number == high)
    if not math.isfinite(number) or number < low or number > high or at_open_end:
        raise ValueError(legal)
    return number


def one_line(value: Any) -> str:
    """A value for a message: arrays and tables are written over several lines otherwise.

    Examples:
      >>> one_line(np.eye(2))
      'array([[1., 0.], [0., 1.]])'
    """
    return " ".join(repr(value).split())


def plain_number(field: str, value: Any) -> Any:
    """A number of any kind as Python's own int, float, bool or complex; anything else, such as a string, as it is.

    Numbers are scalars and 0-d arrays of NumPy, JAX or xarray, fractions and decimals.

    Raises:
      ValueError: naming field and value, for a fraction beyond the largest float.

    Examples:
      >>> from fractions import Fraction
      >>> plain_number("snr", Fraction(1, 4)), plain_number("n", np.array(4)), plain_number("engine", "dense")
      (0.25, 4, 'dense')
    """
    if isinstance(getattr(value, "dtype", None), np.dtype) and hasattr(value, "item") and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, (bool, int, float, complex, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, (numbers.Real, Decimal)):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{field} must be within the range of floats, got {field}={value!r}") from None
    return value


def plain_record(record: Any) -> Any:
    """A dataclass or dict whose numbers are Python's own (see `plain_number`); the same object if they are already.

    Integers beyond 64 bits become floats, as all numbers of a system do where it is trained.

    Examples:
      >>> plain_record({"slope": np.float32(0.5), "on": True})
      {'slope': 0.5, 'on': True}
    """
    if isinstance(record, Mapping):
        plain = {
            name: plain_record(value) if isinstance(value, Mapping) else _leaf(str(name), value)
            for name, value in record.items()
        }
        return plain if any(plain[name] is not record[name] for name in plain) else record
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        return record
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record) if field.init}
    plain = {name: _leaf(name, value) for name, value in values.items()}
    changed = {name: value for name, value in plain.items() if value is not values[name]}
    return dataclasses.replace(record, **changed) if changed else record


def _leaf(name: str, value: Any) -> Any:
    value = plain_number(name, value)
    return real(name, value) if type(value) is int and abs(value) >= 2**63 else value


def numbers_of(record: Any) -> list[tuple[str, Any]]:
    """(field, value) of everything in a dict or a dataclass; nothing of None.

    Examples:
      >>> numbers_of({"slope": 0.5, "n": 4})
      [('slope', 0.5), ('n', 4)]
    """
    if isinstance(record, Mapping):
        return [(str(name), value) for name, value in record.items()]
    return [(f.name, getattr(record, f.name)) for f in dataclasses.fields(record)] if record is not None else []


def floats_of(field: str, value: Any) -> Iterator[tuple[str, float]]:
    """(field, float) of everything in a number, array, dict or dataclass that is a float; ints and words are not.

    Examples:
      >>> list(floats_of("hyper", {"slope": 0.5, "n": 4}))
      [('slope', 0.5)]
    """
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from floats_of(str(name), entry)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from floats_of(entry.name, getattr(value, entry.name))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from floats_of(field, entry)
    elif isinstance(value, float):
        yield field, value
    elif hasattr(value, "dtype") and np.issubdtype(value.dtype, np.floating):
        yield from ((field, float(entry)) for entry in np.ravel(np.asarray(value)))


def representable(field: str, value: float, dtype: Any) -> None:
    """Checks that a float dtype does not turn a number into another one that means something else: 0, 1 or inf.

    Rounding is no such change, and a number within 64-bit rounding of 1 is 1. A subnormal counts as 0: XLA flushes it.

    Args:
      field: name shown in the message.
      value: a Python number.
      dtype: the float dtype that it will have.

    Raises:
      ValueError: naming field and value, what the value becomes, and the remedy.

    Examples:
      >>> representable("eps", 1e-18, np.float32)
      >>> representable("eps", 1e-50, np.float64)
    """
    with np.errstate(all="ignore"):
        rounded = float(np.asarray(value, dtype))
    becomes = None
    if value != 0 and abs(rounded) < np.finfo(dtype).tiny:
        becomes = "0"
    elif math.isinf(rounded) and math.isfinite(value):
        becomes = "inf" if rounded > 0 else "-inf"
    elif abs(rounded) == 1 and abs(abs(value) - 1) > 1e-14:
        becomes = f"{rounded:g}"
    if becomes is not None:
        raise ValueError(f"{field}={value!r} becomes {becomes} in {np.dtype(dtype).name}: {_remedy(dtype)}")


def distinct(field: str, values: Iterable[Any], dtype: Any) -> None:
    """Checks that values which differ still differ in a float dtype.

    Args:
      field: name shown in the message.
      values: numbers, other values, or tuples of them.
      dtype: the float dtype that floats will have.

    Raises:
      ValueError: naming field, two values and the remedy.

    Examples:
      >>> distinct("snr", [0.1, 0.2, None], np.float32)
    """
    seen: dict[Any, Any] = {}
    for value in values:
        parts = value if isinstance(value, tuple) else (value,)
        with np.errstate(all="ignore"):
            rounded = tuple(float(np.asarray(part, dtype)) if isinstance(part, float) else part for part in parts)
        key = hashed(rounded)
        if key in seen:
            raise ValueError(
                f"{field} has two values that are one number in {np.dtype(dtype).name}, {seen[key]!r} and {value!r}: "
                f"{_remedy(dtype)}"
            )
        seen[key] = value


def _remedy(dtype: Any) -> str:
    wide = np.dtype(dtype).itemsize >= 8
    return "choose another" if wide else "take 64-bit floats (--x64, or jax_enable_x64) or choose another"


def hashed(value: Any) -> Any:
    """A value as a key: itself, or its text where it has no hash.

    Examples:
      >>> hashed((1, [2]))
      '(1, [2])'
    """
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


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
    near = _nearest(str(name), [str(one) for one in names])
    hint = f"; did you mean {near!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}{hint} (legal: {', '.join(map(repr, names))})")


def _nearest(name: str, names: list[str]) -> str:
    """The name that was probably meant: a slip of the pen, another case, or a beginning; "" if there is none."""
    spelled = {one.casefold(): one for one in reversed(names)}
    typed = name.casefold()
    begun = [one for one in names if len(typed) >= 2 and one.casefold().startswith(typed)]
    close = difflib.get_close_matches(typed, spelled, n=1, cutoff=0.65)
    return begun[0] if len(begun) == 1 else spelled[close[0]] if close else ""


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
    if value is not None and not isinstance(value, Iterable):
        raise ValueError(f"{field} must be a tuple of names, got {field}={value!r}")
    return None if value is None else tuple(value)


def local_path(field: str, value: str | bytes | os.PathLike[Any]) -> Path:
    """Returns a path of this machine's file system; a path that the system or a library would misread is refused.

    "~" and "~user" are home directories. Nothing else is expanded, and a relative path stays relative. Where a link
    comes before "..", the path is resolved: libraries drop both and end up elsewhere.

    Args:
      field: name shown in the message.
      value: a str, bytes or `os.PathLike`.

    Returns:
      The path, whether or not it exists.

    Raises:
      ValueError: naming field, value and reason: a URL or Windows path, an unknown user, a name that is not text, or a
        path that no file can have (through a file, too long, a loop of links, no permission).

    Examples:
      >>> local_path("out", "results/snr").as_posix()
      'results/snr'
    """
    try:
        text = os.fsdecode(value)
    except TypeError:
        raise ValueError(f"{field} must be a path as str, bytes or os.PathLike, got {field}={value!r}") from None

    def refused(reason: str) -> ValueError:
        return ValueError(f"{field} must be a path of this machine's file system, got {field}={text!r}: {reason}")

    if not text:
        raise refused('an empty path; "." is the current folder')
    if "\0" in text or _undecodable(text):
        raise refused("it has a zero byte, or bytes that are not UTF-8")
    if _ELSEWHERE.match(text):
        raise refused(f"it is a URL or a Windows path; a local name like that is written {'./' + text!r}")
    whole = os.path.expanduser(text)
    if whole == text and text.startswith("~"):
        raise refused(f"that user's home directory is not known; a local name like that is written {'./' + text!r}")
    if ".." in Path(whole).parts:
        plain, real = os.path.normpath(whole), os.path.realpath(whole)
        whole = plain if os.path.realpath(plain) == real else real
    path = Path(whole)
    try:
        here = Path.cwd() if not path.is_absolute() else Path()
        with contextlib.suppress(FileNotFoundError):
            os.stat(here / path)
    except FileNotFoundError:
        raise refused("it is relative, and the current folder is gone") from None
    except OSError as error:
        raise refused(error.strerror or str(error)) from None
    # "./~" and "./s3:/x" are local: whole, since they would be read as something else without their "./".
    return here / path if str(path).startswith("~") or _ELSEWHERE.match(str(path)) else path


def _undecodable(text: str) -> bool:
    """Whether a path has bytes that are not text; Python keeps them as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def field_names(cls: type) -> list[str]:
    """The names of a dataclass's fields, in order."""
    return [field.name for field in dataclasses.fields(cls)]
