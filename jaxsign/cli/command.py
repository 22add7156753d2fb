"""What does the command `jaxsign` do: run, figures, experiments, claims, report, plan, status, verify and export."""

import argparse
import importlib.metadata
import os
import shlex
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from jaxsign import report
from jaxsign.claims import tables
from jaxsign.claims.claim import Claim
from jaxsign.claims.verdicts import decide, undecided
from jaxsign.cli import shipped
from jaxsign.cli.console import BAD_INPUT, DONE, FAILED, UNUSABLE, Parser, configure, count, guarded, positive
from jaxsign.cli.directories import NoResults, each_usable, results_below
from jaxsign.cli.experiment import build_options, built, load_build
from jaxsign.cli.netcdf import export_netcdf
from jaxsign.cli.own_claims import Broken, load_claims
from jaxsign.cli.status import print_plan, print_status, print_verify, status_lines
from jaxsign.store import times
from jaxsign.store.files import is_results
from jaxsign.store.verify import undamaged
from jaxsign.validation.messages import counted, say, show, size_words
from jaxsign.validation.values import local_path


def _run(args: argparse.Namespace) -> int:
    """Runs an experiment that comes with jaxsign, or lists them."""
    if args.list:
        shipped.show_list("sweeps")
        return DONE
    if args.name is None:
        raise ValueError("NAME of an experiment is needed; jaxsign run --list names them all")
    return shipped.run(args.name, args.options)


def _figures(args: argparse.Namespace) -> int:
    """Draws figures that come with jaxsign, or lists them."""
    if args.list:
        shipped.show_list("figures")
        return DONE
    failed = shipped.draw(args.names, args.results, args.out)
    return FAILED if failed and (args.names or failed == len(shipped.scripts("figures"))) else DONE


def _experiments(args: argparse.Namespace) -> int:
    return shipped.copy(args.dir)


def _claims(args: argparse.Namespace) -> int:
    """Prints the claims table of all results below DIR."""
    # Files are checked first: minutes are not spent in vain, and the reference is read before anything is written.
    csv = None if args.csv is None else local_path("--csv", args.csv)
    reference = None if args.against is None else local_path("--against", args.against)
    if csv is not None:
        tables.check_file(csv)
    before = None if reference is None else tables.read(reference)
    if csv is not None and reference is not None and tables.same_file(csv, reference):
        raise ValueError(f"--csv would replace the table that --against compares with, got {args.csv!r} for both")
    claims = load_claims(args.claims, args.claim)
    datasets, left_out = each_usable(args.dirs, lambda path: undamaged(path)[0])
    broken = Broken(args.claims, {str(path): ds for path, ds in datasets.items()})
    table = decide(list(datasets.values()), claims, broken.on_defect)
    for line in (table.to_markdown() if args.markdown else str(table)).split("\n") if table.rows else []:
        show(line)
    if table.rows:
        if args.markdown:
            show("")  # or the sentence would be the table's last row
        show(table.chances())
        if table.beside:
            show(table.left_open())
    reasons = [] if table.rows else undecided(table, list(datasets.values()), own=args.claims is not None)
    if not table.rows and not reasons:
        reasons = ["no claim of jaxsign is about these systems; --claims FILE decides claims of your own"]
        if args.claims is not None:  # it names claims of jaxsign
            reasons = [f"no claim of {args.claims} is about these systems"]
    for reason in reasons:
        show(f"no claim can be decided from {' '.join(args.dirs)}: {reason}")
    if csv is not None:
        table.to_csv(tables.check_file(csv))  # once more: another program may have written it since
    changed = [] if before is None else table.differences(before)
    for line in changed if table.rows else []:  # where nothing is decided, the lines above have said so
        show(f"differs from {args.against}: {line}")
    if before is not None and not table.within(before):
        show(f"{args.against} holds no verdict on {'these claims' if args.claim else 'any claim'}")
    elif before is not None and not changed:
        show(f"all verdicts are those of {args.against}")
    failed = any(row.verdict == "FAILS" for row in table.rows) or changed
    return UNUSABLE if left_out else BAD_INPUT if broken.lines else FAILED if args.strict and failed else DONE


def _report(args: argparse.Namespace) -> int:
    """Writes one page about all results below the directories; with --watch again and again, until all are finished.

    A sweep whose programs are being compiled has no directory yet: --watch waits for it.
    """
    report.check_file(local_path("--out", args.out))
    claims = load_claims(args.claims)
    if args.watch is None:
        return _page(args, claims, None)
    waiting = False
    while True:
        try:
            below = results_below(*args.dirs)
        except NoResults as reason:
            if not waiting:
                say(f"waiting: {reason}")
            waiting = True
            time.sleep(args.watch)
            continue
        states = [(str(path), status_lines(path)[0]) for path in below]
        if all(["next", "finished"] in lines for _, lines in states):
            return _page(args, claims, None)
        _page(args, claims, report.Live(args.watch, states, times.words(datetime.now(UTC))))
        time.sleep(args.watch)


def _page(args: argparse.Namespace, claims: Sequence[Claim] | None, live: report.Live | None) -> int:
    """Writes the page once, finished or of sweeps under way, of which nothing may be stored yet."""
    try:
        datasets, left_out = each_usable(args.dirs, lambda path: undamaged(path)[0])
    except ValueError:
        if live is None:
            raise
        datasets, left_out = {}, 0
    parents = [Path(os.path.abspath(local_path("DIR", directory))).parent for directory in args.dirs]
    names = {}  # relative paths, which begin with the given directory
    for path in datasets:
        full = Path(os.path.abspath(path))
        names[path] = str(next(full.relative_to(parent) for parent in parents if full.is_relative_to(parent)))
    if len(set(names.values())) < len(names):
        names = {path: str(path.resolve()) for path in names}
    named = {names[path]: ds for path, ds in datasets.items()}
    broken = Broken(args.claims, named)
    file = report.write(args.out, named, args.figures, live, claims=claims, on_defect=broken.on_defect)
    show(f"{file}: {size_words(file.stat().st_size)}, {counted(len(datasets), 'sweep')}")
    return UNUSABLE if left_out else BAD_INPUT if broken.lines else DONE


def _plan(args: argparse.Namespace) -> int:
    """Prints what the sweeps of an experiment will take."""
    speed = args.seed_steps_per_second
    if args.quick and speed is not None:
        raise ValueError(f"--quick gives no times: leave --seed-steps-per-second {speed:g} away")
    configure(args.devices if speed is None else None, args.x64)  # the speed of another machine goes with its devices
    given = [(name, getattr(args, name)) for name in ("seeds", "steps", "engine", "tiny", "x64")]
    words = [f"--{name}" if value is True else f"--{name} {value}" for name, value in given if value]
    name = args.file.isidentifier() and len(args.file) <= 64 and not os.path.lexists(args.file)
    file = str(shipped.script("sweeps", args.file)) if name else args.file
    begins = ["jaxsign run", args.file] if name else ["python", shlex.quote(args.file)]
    command = " ".join([*begins, "--out DIR", *words])
    print_plan(built(load_build(file), args), command, args.memory, speed, args.devices or 1, args.quick)
    return DONE


def _status(args: argparse.Namespace) -> int:
    return UNUSABLE if print_status(*args.dirs) else DONE


def _verify(args: argparse.Namespace) -> int:
    return DONE if print_verify(*args.dirs) else FAILED


def _export(args: argparse.Namespace) -> int:
    paths = [path for path in results_below(*args.dirs) if is_results(path)]
    if args.out is not None and len(paths) > 1:
        raise ValueError(f"--out FILE is for one results directory, {' '.join(args.dirs)!r} holds {len(paths)}")
    file = local_path("--out", args.out) if args.out is not None else None

    def work(path: Path) -> None:
        if file is None and (path / "results.nc").is_symlink():
            raise ValueError(f"{str(path / 'results.nc')!r} is a link: if it is meant, give --out FILE")
        show(export_netcdf(path, file or path / "results.nc"))

    return UNUSABLE if each_usable(args.dirs, work)[1] else DONE


def command_parser() -> Parser:
    """Every command of `jaxsign` with its options; the documentation is generated from it."""
    parser = Parser(prog="jaxsign", description="Run experiments, and plan, read, check and export their results.")
    parser.add_argument("--version", action="version", version=f"jaxsign {importlib.metadata.version('jaxsign')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, work: Callable[[argparse.Namespace], int], text: str, results: bool = True) -> Parser:
        subparser = commands.add_parser(name, help=text, description=text)
        if results:
            subparser.add_argument(
                "dirs", metavar="DIR", nargs="+", help="results directories, or ones that hold several"
            )
        subparser.set_defaults(work=work)
        return subparser

    run = command("run", _run, "run an experiment that comes with jaxsign; --list names them", results=False)
    run.add_argument("--list", action="store_true", help="a line an experiment")
    run.add_argument("name", metavar="NAME", nargs="?", help="as listed, such as dynamics")
    run.add_argument(
        "options", metavar="OPTION", nargs=argparse.REMAINDER,
        help="of the experiment, see jaxsign run NAME --help; without --out: results/NAME, or results/tiny/NAME",
    )  # fmt: skip
    drawn = command("figures", _figures, "draw figures from results; without NAME all that can be drawn", results=False)
    drawn.add_argument("--list", action="store_true", help="a line a figure")
    drawn.add_argument("names", metavar="NAME", nargs="*", help="as listed, such as figure1")
    drawn.add_argument("--results", metavar="DIR", default="results", help="default results")
    drawn.add_argument("--out", metavar="FOLDER", help="default figures in the folder of --results")
    copied = command("experiments", _experiments, "copy the scripts of experiments and figures", results=False)
    copied.add_argument("action", choices=["copy"], help="copy: into DIR/sweeps and DIR/figures, to read and change")
    copied.add_argument("dir", metavar="DIR", help="new or empty")
    claims = command("claims", _claims, "predicted, measured and verdict of every claim that the DIRs can decide")
    claims.add_argument("--claim", action="append", metavar="ID", help="only this claim; may be repeated")
    own = "claims of your own: a Python file with CLAIMS = [js.Claim(...), ...], decided in place of jaxsign's"
    claims.add_argument("--claims", metavar="FILE", help=own)
    claims.add_argument("--strict", action="store_true", help="exit with 1 if a claim FAILS or differs from --against")
    claims.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    claims.add_argument("--csv", metavar="FILE", help="also write the table as CSV; an earlier table is replaced")
    claims.add_argument(
        "--against", metavar="FILE", help="point out verdicts that differ from this CSV, or are no longer decided"
    )
    page = command("report", _report, "one HTML page: every figure, claim, verdict and manifest; no network")
    page.add_argument(
        "--out", metavar="FILE", required=True, help="the page, such as report.html; an earlier one is replaced"
    )
    page.add_argument(
        "--watch", type=count, metavar="SECONDS",
        help="write the page again every SECONDS until all sweeps are finished; a browser that shows it follows",
    )  # fmt: skip
    page.add_argument("--claims", metavar="FILE", help=own)
    page.add_argument("--figures", metavar="FOLDER", help="also show the SVG and PNG files of this folder")
    plan = command("plan", _plan, "runs, programs, memory, time and disk that an experiment will take", results=False)
    plan.add_argument("file", metavar="FILE", help="an experiment's NAME, or a file with build(args) -> {key: Sweep}")
    build_options(plan)
    plan.set_defaults(out=None, help=False)  # as sweep_cli hands them to build
    plan.add_argument("--memory", type=count, metavar="BYTES", help="memory of one call, default as in run_sweep")
    plan.add_argument("--seed-steps-per-second", type=positive, metavar="X", help="a device's speed; none is measured")
    plan.add_argument("--quick", action="store_true", help="runs, programs and bytes alone: nothing is compiled")
    plan.add_argument("--devices", type=count, metavar="N", help="devices of speed X; without it, CPU devices here")
    command("status", _status, "what is done, who works on it and what is left; reads only")
    command("verify", _verify, "read every checksum and number; exit with 1 if anything is damaged or not run")
    export = command("export", _export, "write DIR/results.nc; takes three times its size in memory")
    export.add_argument("--format", required=True, choices=["netcdf"], help="netcdf: netCDF 3 with 64-bit offsets")
    export.add_argument("--out", metavar="FILE", help="instead of results.nc beside each results.zarr")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command `jaxsign`."""
    parser = command_parser()
    args = parser.parse_args(argv)
    return guarded(parser.prog, lambda: args.work(args))
