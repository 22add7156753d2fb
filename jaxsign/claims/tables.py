"""How is a claims table kept as a CSV file? Written in one move, recognised later, and read back for comparison."""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxsign.store.manifest import replace_file

#: What every line of a table says; these three are its identity and its verdict.
IDENTITY = ("claim", "setting", "verdict")
COLUMNS = (
    "claim", "setting", "statement", "source", "quantity", "predicted", "median", "q05", "q95", "interval_low",
    "interval_high", "inside", "seeds", "share_low", "share_high", "judge", "chance",
    "beyond_chance", "verdict",
)  # fmt: skip
VERDICTS = ("HOLDS", "FAILS", "UNDECIDED")
#: A preset's name as a word of a setting -> its name today, for tables of earlier versions.
RENAMED = {"theory": "disjoint"}


def check_file(path: Path) -> Path:
    """The file that the command writes a table to, before minutes are spent on deciding claims.

    Args:
      path: new, or an earlier claims table.

    Returns:
      The file itself, links followed.

    Raises:
      ValueError: if it is anything else than a claims table, or cannot be written.
    """
    file = _writable(path)
    try:
        ours = not file.exists() or _is_table(file)
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {_reason(error)}") from None
    if not ours:
        raise ValueError(f"{str(path)!r} is not a claims table of jaxsign: move it away or choose another file")
    return file


def _writable(path: Path) -> Path:
    """A file's path with its links followed.

    Raises:
      ValueError: if it is a directory, a pipe or a device, or its folder is missing or cannot be written.
    """
    try:
        file = path.resolve()
        if file.is_dir():
            raise ValueError(f"a claims table must be a file, got the directory {str(path)!r}")
        if file.exists() and not file.is_file():
            raise ValueError(f"a claims table must be a file, got the pipe or device {str(path)!r}")
        if not file.parent.is_dir():
            raise ValueError(f"a claims table must be in a folder that exists, got {str(path)!r}")
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise ValueError(f"a claims table must be in a folder that can be written, got {str(path)!r}")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ValueError(f"{str(path)!r} cannot be written: {_reason(error)}") from None
    return file


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, by links of either kind or in other words."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records of COLUMNS in one move, numbers with 6 significant digits so that rounding leaves no trace.

    Args:
      path: new, or an earlier claims table.
      records: one a line.

    Raises:
      ValueError: if it is anything else, or the system refuses.
    """
    file = check_file(path)
    try:
        with replace_file(file) as temporary, open(temporary, "x", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            for record in records:
                writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in record.items()})
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be written: {_reason(error)}") from None


def read(path: Path) -> dict[tuple[str, str], str]:
    """The verdicts of a table: {(claim, setting): verdict}, empty if it has no lines.

    Args:
      path: a file made by `write`, also of a version that called a preset by another name; other columns may be
        missing, and a byte order mark is read over.

    Raises:
      ValueError: if it is missing, no such table, or contradicts itself, with the number of the line.
    """
    asked = f"a claims table written by jaxsign claims --csv, columns {', '.join(IDENTITY)}, got {str(path)!r}"
    out: dict[tuple[str, str], str] = {}
    try:
        if not path.is_file():
            raise ValueError(f"the reference must be {asked}, which is no file")
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, strict=True)
            if not set(IDENTITY) <= set(rows.fieldnames or ()):
                raise ValueError(f"the reference must be {asked} with the first line {_shown(rows.fieldnames)}")
            for row in rows:
                claim, setting, verdict = (row[name] for name in IDENTITY)
                for old, new in RENAMED.items():
                    setting = re.sub(rf"\b{old}\b", new, setting or "")
                where = f"line {rows.line_num} of the claims table {str(path)!r}"
                if not claim or not setting:
                    raise ValueError(f"{where} must name a claim and a setting, got {_shown(list(row.values()))}")
                if verdict not in VERDICTS:
                    raise ValueError(f"{where} must give one of the verdicts {', '.join(VERDICTS)}, got {verdict!r}")
                if out.setdefault((claim, setting), verdict) != verdict:
                    first = out[claim, setting]
                    raise ValueError(f"{where} gives {claim} {setting} the verdict {verdict}, an earlier line {first}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"the reference must be {asked}, which is no such text: {error}") from None
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {_reason(error)}") from None
    return out


def _is_table(file: Path) -> bool:
    """Whether a file begins as tables do: with the columns of this version or of an earlier one."""
    with file.open("rb") as stream:
        first = stream.readline(1000).removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    names = first.decode("utf-8", "replace").split(",")
    return names[:2] == ["claim", "setting"] and names[-1] == "verdict" and set(names) <= set(COLUMNS)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _shown(cells: Any) -> str:
    text = ",".join(map(str, cells or ()))
    return repr(text if len(text) <= 60 else text[:57] + "...")
