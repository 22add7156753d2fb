"""The command `jaxsign`: claims, report, plan, status, verify and export."""

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxsign import report, tables, tools
from jaxsign.console import DONE, FAILED, UNUSABLE, Parser, configure, count, guarded, positive
from jaxsign.experiment import build_options, load_build
from jaxsign.netcdf import export_netcdf
from jaxsign.store.results import is_results
from jaxsign.validation import local_path
from jaxsign.verdicts import check


def find_results(directory: str) -> list[Path]:
    """The results directories at and below a directory, sorted by path.

    Raises:
      ValueError: if there is none.
    """
    return [path for path in tools.results_below(directory) if is_results(path)]


def _claims(args: argparse.Namespace) -> int:
    """Prints the claims table of all results below DIR."""
    # Files first: they are refused before minutes are spent, and the reference is read before anything is written.
    csv = None if args.csv is None else local_path("--csv", args.csv)
    reference = None if args.against is None else local_path("--against", args.against)
    if csv is not None:
        tables.check_file(csv)
    before = None if reference is None else tables.read(reference)
    if csv is not None and reference is not None and tables.same_file(csv, reference):
        raise ValueError(f"--csv would replace the table that --against compares with, got {args.csv!r} for both")
    table = check([tools.undamaged(path)[0] for path in find_results(args.dir)], claims=args.claim)
    if table.rows:
        print(table.to_markdown() if args.markdown else table)
    for reason in [] if table.rows else table.reasons():
        print(f"no claim can be decided from {args.dir}: {reason}")
    if csv is not None:
        table.to_csv(tables.check_file(csv))  # again: another program may have written it in the meantime
    changed = [] if before is None else table.differences(before)
    for line in changed if table.rows else []:  # where nothing is decided, the lines above have said so
        print(f"differs from {args.against}: {line}")
    if before is not None and not table.within(before):
        print(f"{args.against} holds no verdict on {'these claims' if args.claim else 'any claim'}")
    elif before is not None and not changed:
        print(f"all verdicts are those of {args.against}")
    failed = any(row.verdict == "FAILS" for row in table.rows) or changed
    return FAILED if args.strict and failed else DONE


def _report(args: argparse.Namespace) -> int:
    """Writes one page about all results below the directories."""
    report.check_file(local_path("--out", args.out))
    found: dict[Path, str] = {}  # by their full paths, so that what is given twice comes once
    for directory in args.dirs:
        parent = Path(os.path.abspath(local_path("DIR", directory))).parent
        for path in find_results(directory):
            found.setdefault(path.resolve(), str(Path(os.path.abspath(path)).relative_to(parent)))
    short = len(set(found.values())) == len(found)  # names from the given directory on, whole paths if two are the same
    runs = {name if short else str(path): tools.undamaged(path)[0] for path, name in found.items()}
    file = report.write(args.out, runs, args.figures)
    print(f"{file}: {tools.size_words(file.stat().st_size)}, {tools.counted(len(runs), 'sweep')}")
    return DONE


def _plan(args: argparse.Namespace) -> int:
    """Prints what the sweeps of an experiment will take."""
    speed = args.seed_steps_per_second
    configure(args.devices if speed is None else None, args.x64)  # another machine's speed: its devices too
    given = [(name, getattr(args, name)) for name in ("seeds", "steps", "engine", "tiny", "x64")]
    words = [f"--{name}" if value is True else f"--{name} {value}" for name, value in given if value]
    command = " ".join(["python", shlex.quote(args.file), "--out DIR", *words])
    tools.print_plan(load_build(args.file)(args), command, args.memory, speed, args.devices or 1)
    return DONE


def _status(args: argparse.Namespace) -> int:
    return UNUSABLE if tools.print_status(args.dir) else DONE


def _verify(args: argparse.Namespace) -> int:
    return DONE if tools.print_verify(args.dir) else FAILED


def _export(args: argparse.Namespace) -> int:
    found = find_results(args.dir)
    if args.out is not None and len(found) > 1:
        raise ValueError(f"--out FILE is for one results directory, {args.dir!r} holds {len(found)}")
    file = local_path("--out", args.out) if args.out is not None else None
    for path in found:
        if file is None and (path / "results.nc").is_symlink():
            raise ValueError(f"{str(path / 'results.nc')!r} is a link: if it is meant, give --out FILE")
        print(export_netcdf(path, file or path / "results.nc"), flush=True)
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """The command `jaxsign`."""
    parser = Parser(prog="jaxsign", description="Plan sweeps, and read, check and export their results.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, work: Callable[[argparse.Namespace], int], text: str, results: bool = True) -> Any:
        own = commands.add_parser(name, help=text, description=text)
        if results:
            own.add_argument("dir", metavar="DIR", help="a results directory, or one that holds several")
        own.set_defaults(work=work)
        return own

    claims = command("claims", _claims, "predicted, measured and verdict of every claim that DIR can decide")
    claims.add_argument("--claim", action="append", metavar="ID", help="only this claim; may be repeated")
    claims.add_argument("--strict", action="store_true", help="exit with 1 if a claim FAILS or differs from --against")
    claims.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    claims.add_argument("--csv", metavar="FILE", help="also write the table as CSV; an earlier table is replaced")
    claims.add_argument(
        "--against", metavar="FILE", help="point out verdicts that differ from this CSV, or are no longer decided"
    )
    page = command(
        "report", _report, "one HTML page: every figure, claim, verdict and manifest; no network", results=False
    )
    page.add_argument("dirs", metavar="DIR", nargs="+", help="results directories, or ones that hold several")
    page.add_argument(
        "--out", metavar="FILE", required=True, help="the page, such as report.html; an earlier one is replaced"
    )
    page.add_argument("--figures", metavar="FOLDER", help="also show the SVG and PNG files of this folder")
    plan = command("plan", _plan, "runs, programs, memory, time and disk that an experiment will take", results=False)
    plan.add_argument("file", metavar="FILE", help="sweeps/NAME.py, or any file with build(args) -> {key: Sweep}")
    build_options(plan)
    plan.set_defaults(out=None, help=False)  # as sweep_cli hands them to build
    plan.add_argument("--memory", type=count, metavar="BYTES", help="memory of one call, default as in run_sweep")
    plan.add_argument("--seed-steps-per-second", type=positive, metavar="X", help="a device's speed; none is measured")
    plan.add_argument("--devices", type=count, metavar="N", help="devices of speed X; without it, CPU devices here")
    command("status", _status, "what is done, who works on it and what is left; reads only")
    command("verify", _verify, "read every checksum and number; exit with 1 if anything is damaged or not run")
    export = command("export", _export, "write DIR/results.nc; takes three times its size in memory")
    export.add_argument("--format", required=True, choices=["netcdf"], help="netcdf: netCDF 3 with 64-bit offsets")
    export.add_argument("--out", metavar="FILE", help="instead of results.nc beside each results.zarr")
    args = parser.parse_args(argv)
    return guarded(parser.prog, lambda: args.work(args))


if __name__ == "__main__":
    raise SystemExit(main())
