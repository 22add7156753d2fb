"""Bad input ends here: one clear line that names the field, the value and its legal range."""

import contextlib
import difflib
import math
import operator
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: "s3://bucket/x", also after Path has made "s3:/bucket/x" of it, "simplecache::s3://bucket/x", "C:\\x".
_ELSEWHERE = re.compile(r"(?:[\w+.-]+::)*[A-Za-z][A-Za-z0-9+.-]*:[/\\]")


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


def local_path(field: str, value: str | bytes | os.PathLike[Any]) -> Path:
    """Returns a path of this machine's file system; what the system or a library would take for another one is refused.

    "~" and "~user" are home directories. Nothing else is expanded, and a relative path stays relative. Where a link
    comes before "..", the path is resolved: libraries drop both and end up elsewhere.

    Args:
      field: name shown in the message.
      value: a str, bytes or `os.PathLike`.

    Returns:
      The path; whether something is there is not asked.

    Raises:
      ValueError: naming field, value and reason: a URL or Windows path, an unknown user, a name that is no text, or a
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
    """Whether a path has bytes that are no text; Python holds them as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
