"""Checks of names that users give: of results, which are also folders and netCDF names, and of words."""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

#: Bytes of a name in UTF-8: file systems take 255, and a dimension's name may be made of a variable's.
BYTES = 200
#: Characters beside letters and digits that netCDF 3 and file systems allow after the first one.
MARKS = ' _.@+-!"#$%&()*,:;<=>?[]^`{|}~'
#: Reserved attributes: readers would change the numbers by them, or lose the attribute.
ATTRIBUTES = (
    "_FillValue", "missing_value", "scale_factor", "add_offset", "dtype", "calendar", "coordinates", "grid_mapping",
    "bounds", "ancillary_variables", "cell_measures", "formula_terms", "_Unsigned", "_Encoding", "_ARRAY_DIMENSIONS",
    "padded", "computed_as", "not_run", "kind", "name",
)  # fmt: skip


def result_name(kind: str, name: Any) -> str:
    r"""Returns a name of results if memory, disk, exports and reports all hold it.

    A name is a folder of results.zarr and a variable of netCDF 3: a letter, digit or underscore, then also spaces and
    marks, but no slash, backslash or apostrophe. Letters may be of any script.

    Args:
      kind: the kind of thing that is named, for the message: "observable", "summary", "dimension", ...
      name: anything.

    Returns:
      The name.

    Raises:
      ValueError: naming kind, name and reason.

    Examples:
      >>> result_name("summary", "val loss")
      'val loss'
      >>> result_name("observable", "\u03b7")
      'η'
    """
    if reason := _wrong(name):
        raise ValueError(f"{kind} {name!r} cannot be a name in the results: {reason}")
    return str(name)


def _wrong(name: Any) -> str:
    """Why results cannot have this name; "" if they can."""
    if reason := _unwritable(name):
        return reason
    if len(name.encode()) > BYTES:
        return f"it has {len(name.encode())} bytes in UTF-8, and {BYTES} are allowed"
    if strange := next((c for c in name if c.isascii() and not c.isalnum() and c not in MARKS), ""):
        return f"{strange!r} is not allowed in file names and netCDF"
    if name.startswith("__"):
        return "zarr keeps names that begin with '__' for itself"
    if name[0].isascii() and not name[0].isalnum() and name[0] != "_":
        return "it must begin with a letter, a digit or '_'"
    if unicodedata.category(name[0]).startswith("M"):
        return "it begins with a combining mark"
    return "it is a file of zarr's" if name.lower() == "zarr.json" else ""


def word(kind: str, name: Any) -> str:
    """Returns a name that is shown and stored as a word, such as an optimizer's: a printable string.

    Raises:
      ValueError: naming kind, name and reason.

    Examples:
      >>> word("optimizer", "adam(b1=0)")
      'adam(b1=0)'
    """
    if reason := _unwritable(name):
        raise ValueError(f"{kind} {name!r} cannot be a name: {reason}")
    return str(name)


def _unwritable(name: Any) -> str:
    """Why a name cannot be stored as a word; "" if it can."""
    if not isinstance(name, str):
        return f"it must be a string, not {type(name).__name__}"
    if not name.strip():
        return "it is empty"
    if name != name.strip():
        return "it begins or ends with a space"
    strange = next((c for c in name if not _shows(c)), "")
    return f"{strange!r} cannot be printed" if strange else ""


def _shows(character: str) -> bool:
    """Whether a character may be shown: not line breaks, control characters, changes of direction, lone surrogates."""
    return character.isprintable() or character in "\u200c\u200d"  # joiners are part of emoji


def printable(text: Any) -> str:
    r"""A text on one line, safe to show: characters that move the cursor or turn the direction are escaped.

    File names, lock files, manifests and labels of other users may hold any characters.

    Examples:
      >>> print(printable("loss\x1b[2K\r \u202eevil"))
      loss\x1b[2K\r \u202eevil
    """
    return "".join(c if _shows(c) else c.encode("unicode_escape").decode() for c in str(text))


def text_value(kind: str, value: Any) -> None:
    """Checks that a string among the values of an axis or a keyword can be stored.

    Raises:
      ValueError: naming kind and value.
    """
    if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{kind} has the value {value!r}, which cannot be written to a file")


def alike(name: str) -> str:
    """A key that is equal for names which some file systems, such as macOS's, do not tell apart.

    Examples:
      >>> alike("Loss") == alike("loss")
      True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def different(names: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Checks that names of results differ, and not by case alone.

    Args:
      names: (kind, name) of everything.

    Returns:
      {key of `alike`: (kind, name)}.

    Raises:
      ValueError: naming both kinds and the name.

    Examples:
      >>> sorted(different([("observable", "loss"), ("summary", "last")]))
      ['last', 'loss']
    """
    taken_names: dict[str, tuple[str, str]] = {}
    for kind, name in names:
        if alike(name) not in taken_names:
            taken_names[alike(name)] = (kind, name)
            continue
        other, taken = taken_names[alike(name)]
        if taken == name:
            raise ValueError(f"{kind} {name!r} has a name that the {other} {taken!r} has already: rename one of them")
        raise ValueError(
            f"{kind} {name!r} and the {other} {taken!r} differ by case or by the coding of accents only, which some "
            "file systems do not tell apart: rename one of them"
        )
    return taken_names


def attributes(name: str, attrs: Any) -> None:
    """Checks the attributes of a variable: names that netCDF allows, none reserved; values are strings or numbers.

    Raises:
      ValueError: naming variable and attribute.
    """
    if not isinstance(attrs, Mapping):
        raise ValueError(f"attrs of {name!r} must be a dict such as {{'units': ...}}, got {attrs!r}")
    for key, value in attrs.items():
        result_name(f"attribute of {name!r}", key)
        if key in ATTRIBUTES:
            raise ValueError(f"attribute of {name!r} {key!r} has a meaning of its own in files: rename it")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"attribute of {name!r} {key!r} must be a string or a number, got {value!r}")
        text_value(f"attribute of {name!r} {key!r}", value)
