"""Sphinx extension: fills in what the pages take from the code and from committed tables, so that it cannot drift.

A fenced block named {claims}, {verdicts}, {options}, {commands}, {experiments} or {targets} becomes Markdown before the
page is parsed. The first two read a table of figures/gallery, the others the parsers, scripts and Makefile.
"""

import argparse
import ast
import csv
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```\{(claims|verdicts|options|commands|experiments|targets)\}([^\n]*)\n(.*?)^```$", re.M | re.S)
VERDICTS = {"HOLDS": "hold", "UNDECIDED": "are undecided", "FAILS": "fail"}


def cell(text: str) -> str:
    """Plain text as one cell of a Markdown table; options in it are code."""
    text = re.sub(r"([\\`*_|<>\[\]{}$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"`\1`", text)


def number(text: str) -> str:
    """A number of a table with four digits."""
    return f"{float(text):.4g}" if text else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def read(name: str, only: str) -> list[dict[str, str]]:
    """The rows of a claims table whose claim's id matches the pattern `only`."""
    with (ROOT / "figures" / "gallery" / name).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if re.match(only, row["claim"])]
    if not rows:
        raise ValueError(f"{name} holds no claim that matches {only!r}")
    return rows


def by_claim(rows: list[dict[str, str]]) -> dict[str, dict[str, list[dict[str, str]]]]:
    """{claim: {setting: its quantities}}, in the order of the table."""
    found: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        found.setdefault(row["claim"], {}).setdefault(row["setting"], []).append(row)
    return found


def interval(row: Mapping[str, str]) -> str:
    """The interval that was written down, or nothing where the quantity is only reported."""
    if not row["interval_low"]:
        return ""
    low, high = float(row["interval_low"]), float(row["interval_high"])
    left = "(0" if 0 < low < sys.float_info.min else f"({low:g}" if math.isinf(low) else f"[{low:g}"
    return f"{left}, {high:g})" if math.isinf(high) else f"{left}, {high:g}]"


def claims(name: str, only: str) -> str:
    """Every claim of a table: a statement, then measured numbers, interval and verdict in every setting."""
    parts, averages = [], False
    for claim, settings in by_claim(read(name, only)).items():
        first = next(iter(settings.values()))[0]
        parts.append(f"**{cell(claim)}** ({cell(first['source'])}). {cell(first['statement'].rstrip('.'))}.\n")
        rows = []
        for setting, quantities in settings.items():
            for place, row in enumerate(quantities):
                verdict = f"**{row['verdict']}** ({row['inside']}/{row['seeds']})" if place == 0 else ""
                averages |= row["verdict"] == "HOLDS" and float(row["inside"]) < 0.9 * float(row["seeds"])
                measured = (
                    f"{number(row['median'])} [{number(row['q05'])}, {number(row['q95'])}]" if row["median"] else ""
                )
                rows.append([cell(setting) if place == 0 else "", cell(row["quantity"]), number(row["predicted"]),
                             cell(measured), cell(interval(row)), verdict])  # fmt: skip
        header = ["setting", "quantity", "predicted", "median [5 %, 95 %]", "interval", "verdict (inside/seeds)"]
        parts.append(table(header, rows))
    if averages:
        parts.append(
            "A claim about an average is judged by the interval of its mean: it may hold with few seeds inside.\n"
        )
    return "\n".join(parts)


def verdicts(name: str, only: str) -> str:
    """One line: which claims hold, are undecided, fail, or differ between settings."""
    groups: dict[str, list[str]] = {verdict: [] for verdict in [*VERDICTS, "mixed"]}
    for claim, settings in by_claim(read(name, only)).items():
        found = [quantities[0]["verdict"] for quantities in settings.values()]
        if len(set(found)) == 1:
            groups[found[0]].append(cell(claim))
        else:
            counts = ", ".join(f"{found.count(v)} {v}" for v in VERDICTS if v in found)
            groups["mixed"].append(f"{cell(claim)} ({counts})")
    lines = [f"{v}: {', '.join(groups[v])}" for v in VERDICTS if groups[v]]
    lines += [f"by setting: {', '.join(groups['mixed'])}"] if groups["mixed"] else []
    return "; ".join(lines) + ".\n"


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Arguments and options of a parser without its commands."""
    return [a for a in parser._actions if not isinstance(a, argparse._SubParsersAction)]


def option_rows(parser: argparse.ArgumentParser) -> list[list[str]]:
    """One row of a table for every argument and option."""
    rows = []
    for action in actions(parser):
        if (action.help or "").startswith("show this help"):  # of every command
            continue
        takes = "" if action.nargs == 0 else " " + str(action.metavar or action.dest.upper())
        names = [name + takes for name in action.option_strings] or [takes.strip()]
        legal = f"one of {', '.join(map(str, action.choices))}; " if action.choices else ""
        needed = "required; " if action.required and action.option_strings else ""
        text = (action.help or "") % {"default": action.default, "prog": parser.prog}
        rows.append([", ".join(f"`{name}`" for name in names), cell(needed + legal + text)])
    return rows


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser that a page asks for."""
    from jaxsign.cli.command import command_parser
    from jaxsign.cli.experiment import experiment_parser
    from jaxsign.plot.script import figure_parser

    known: dict[str, Callable[[], argparse.ArgumentParser]] = {
        "jaxsign": command_parser, "experiment": experiment_parser, "figure": figure_parser,
    }  # fmt: skip
    return known[name]()


def options(name: str, only: str) -> str:
    """The options that all experiments, or all figures, share."""
    del only
    return table(["option", "means"], option_rows(parser_of(name)))


def commands(name: str, only: str) -> str:
    """A section for every command of a parser."""
    del only
    parser = parser_of(name)
    found = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    own = option_rows(parser)
    parts = [table(["option", "means"], own)] if own else []
    for command, subparser in found.choices.items():
        usage = " ".join(subparser.format_usage().split()).removeprefix("usage: ").replace(" [-h]", "")
        usage = textwrap.fill(usage, 80, subsequent_indent="    ", break_on_hyphens=False)
        parts.append(
            f"### `{parser.prog} {command}`\n\n{cell(subparser.description or '')}.\n\n```text\n{usage}\n```\n\n"
            + table(["option", "means"], option_rows(subparser))
        )
    return "\n".join(parts)


def said(docstring: str, label: str) -> str:
    """What a docstring says after "Command:" or "Cost:", up to the next label or an empty line."""
    found = re.search(rf"^{label}: (.*?)(?=^\w+: |^\s*$|\Z)", docstring, re.M | re.S)
    return " ".join(found[1].split()) if found else ""


def experiments(name: str, only: str) -> str:
    """Every experiment below a folder: what it asks, its command and its cost, from its docstring."""
    del only
    rows = []
    for file in sorted((ROOT / name).glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        if said(text, "Command"):
            command = re.split(r" && | \[", said(text, "Command").split(", or ")[-1])[0]
            cost = said(text, "Cost").split(" All settings")[0]
            rows.append([f"`{command}`", cell(text.splitlines()[0]), cell(cost)])
    return table(["command", "what it runs", "cost"], rows)


def targets(name: str, only: str) -> str:
    """Every target of the Makefile that explains itself."""
    del only
    found = re.findall(r"^([a-z0-9-]+):.*?## (.*)$", (ROOT / name).read_text(), re.M)
    return table(["command", "does"], [[f"`make {target}`", cell(text)] for target, text in found])


def filled(text: str) -> str:
    """A page with its generated blocks in place."""
    makers = {"claims": claims, "verdicts": verdicts, "options": options, "commands": commands,
              "experiments": experiments, "targets": targets}  # fmt: skip

    def made(block: re.Match[str]) -> str:
        only = re.search(r"^:only: (.*)$", block[3], re.M)
        return makers[block[1]](block[2].strip(), only[1] if only else "")

    return BLOCK.sub(made, text)


def before_parsing(app: Any, docname: str, source: list[str]) -> None:
    """Fills in a page's blocks; such a page is built anew every time, since what it shows may have changed."""
    after = filled(source[0])
    if after != source[0]:
        app.env.note_reread()
    source[0] = after


def setup(app: Any) -> dict[str, bool]:
    """Listens to every page that is read."""
    app.connect("source-read", before_parsing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
