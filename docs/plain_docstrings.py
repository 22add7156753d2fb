"""Sphinx extension: reads the plain text of jaxsign's docstrings as it is meant, before reStructuredText does.

An indented block is an equation and keeps its lines; `js.NAME` is a link; `*`, `|` and a final `_` are characters.
"""

import re
from collections.abc import Iterator
from typing import Any

#: Stands for a colon in "Returns:" and in the line of an attribute, where napoleon takes what is before it for a type.
COLON = "\ua789"
#: Sections that napoleon reads; what is indented below them is no equation.
SECTIONS = ("Args:", "Returns:", "Raises:", "Examples:", "References:", "Yields:")
CODE = re.compile(r"(`+[^`]+`+)")
FIELD = re.compile(r"^(\s*)(:[^:]+:|\.\. .*)")


def equations(lines: list[str]) -> Iterator[str]:
    """The lines with every indented block before the first section as a literal block."""
    inside, plain = False, True
    for number, line in enumerate(lines):
        if line.strip() in SECTIONS and not line.startswith(" "):
            plain = False
        indented = line.startswith("    ") and plain
        if indented and not inside and not (number and lines[number - 1].strip()):
            yield from (".. code-block:: text", "")
            inside = True
        elif line.strip() and not indented:
            inside = False
        yield line


def escaped(text: str) -> str:
    """Prose whose `*`, `|` and final `_` are themselves."""
    text = re.sub(r"(?<!\\)([*|])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def prose(line: str) -> str:
    """One line of prose: code is left as it is, or becomes a link; everything else is escaped."""
    field = FIELD.match(line)
    head = field.group(0) if field else ""
    parts = CODE.split(line[len(head) :])
    for i, part in enumerate(parts):
        if not CODE.fullmatch(part):
            parts[i] = escaped(part)
        elif not part.startswith("``"):
            known = re.fullmatch(r"`js\.([\w.]+)(\(\.*\))?`", part)
            if known:
                parts[i] = f":py:obj:`{part[1:-1]} <jaxsign.{known.group(1)}>`"
            elif not re.fullmatch(r"`[\w.]+`", part):
                parts[i] = f"`{part}`"
    return head + "".join(parts)


def before_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Marks equations and hides colons that name no type."""
    del app, name, obj, options
    section, out = "", []
    if what in ("attribute", "data", "property") and lines:
        lines[0] = lines[0].replace(":", COLON)
    for line in equations(lines):
        section = line if line in SECTIONS else section
        out.append(line.replace(":", COLON) if section == "Returns:" and line.startswith(" ") else line)
    lines[:] = out


def after_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escapes prose; literal blocks and examples stay as they are."""
    del app, what, name, obj, options
    out: list[str] = []
    literal: int | None = None  # indentation of what introduced the literal block
    example = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip():
            if literal is not None and indent <= literal:
                literal = None
            example = line.lstrip().startswith(">>>") or example
        else:
            example = False
        out.append(line if literal is not None or example or not line.strip() else prose(line))
        if literal is None and line.strip() == ".. code-block:: text":
            literal = indent
    lines[:] = [line.replace(COLON, ":") for line in out]


def setup(app: Any) -> dict[str, bool]:
    """Puts both passes around napoleon's, which has priority 500."""
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
